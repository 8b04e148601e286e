// Hyper-connections of a step: the parts of hyper.hpp that can be shared out for a single row.
#pragma once

#include <cmath>
#include <cstdint>

#include "hyper.hpp"
#include "rows.hpp"
#include "sinkhorn.hpp"

namespace narrows::NARROWS_ISA {

// mixes [N, count] of rows begin to end: streams [N, 4 · d] times rows from to to of fn [count, 4 · d], as they are.
inline void hyper_mixes(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t count, std::int64_t from,
                        std::int64_t to, const float* streams, const float* fn, float* mixes) {
    const std::int64_t length = STREAMS * d;
    for (std::int64_t n = begin; n < end; n += ROWS) {
        const float* rows[ROWS];
        float* products[ROWS];
        for (std::int64_t r = 0; r < ROWS; ++r) {  // missing rows repeat the last
            rows[r] = streams + std::min(n + r, end - 1) * length;
            products[r] = mixes + std::min(n + r, end - 1) * count + from;
        }
        row_products(rows, fn + from * length, length, to - from, products);
    }
}

inline float hyper_scale(const float* streams, std::int64_t length, float norm_eps) {
    return 1.0f / std::sqrt(dot(streams, streams, length) / static_cast<float>(length) + norm_eps);
}

// What a row's sub-layer reads: its streams [4, d] by the sigmoids of the first four mixes -> to [d].
inline void hyper_collapse_row(const float* streams, const float* mixes, const float* base, float scale, float eps,
                               std::int64_t d, float* to) {
    float weights[STREAMS];
    for (int s = 0; s < STREAMS; ++s) weights[s] = sigmoid(mixes[s] * scale + base[s]) + eps;
    std::int64_t i = 0;
    for (; i + WIDTH <= d; i += WIDTH) {
        Vec total = load(streams + i) * weights[0];
        for (int s = 1; s < STREAMS; ++s) total += load(streams + s * d + i) * weights[s];
        store(to + i, total);
    }
    for (; i < d; ++i) {
        float total = streams[i] * weights[0];
        for (int s = 1; s < STREAMS; ++s) total += streams[s * d + i] * weights[s];
        to[i] = total;
    }
}

// Rows begin to end: mixes [N, 24], as hyper_mixes gives them -> out [N, d], post [N, 4], comb [N, 16].
inline void hyper_finish(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams,
                         const float* mixes, const float* base, const float* scale, float eps, float norm_eps,
                         int iterations, float* out, float* post, float* comb) {
    constexpr int COUNT = 2 * STREAMS + CELLS;
    for (std::int64_t n = begin; n < end; n += WIDTH) {
        const std::int64_t last = std::min<std::int64_t>(n + WIDTH, end);
        float logits[WIDTH * CELLS];
        for (std::int64_t row = n; row < last; ++row) {
            float scaled[COUNT];
            const float factor = hyper_scale(streams + row * STREAMS * d, STREAMS * d, norm_eps);
            for (int m = 0; m < COUNT; ++m) scaled[m] = mixes[row * COUNT + m] * factor;
            hyper_collapse_row(streams + row * STREAMS * d, scaled, base, scale[0], eps, d, out + row * d);
            for (int s = 0; s < STREAMS; ++s)
                post[row * STREAMS + s] = 2.0f * sigmoid(scaled[STREAMS + s] * scale[1] + base[STREAMS + s]);
            for (int cell = 0; cell < CELLS; ++cell)
                logits[(row - n) * CELLS + cell] = scaled[2 * STREAMS + cell] * scale[2] + base[2 * STREAMS + cell];
        }
        sinkhorn(0, last - n, iterations, eps, logits, comb + n * CELLS);
    }
}

// The collapse before a head: streams [4, d], fn [4, 4 · d] -> to [d].
inline void hyper_head_row(const float* streams, const float* fn, const float* base, float scale, float eps,
                           float norm_eps, std::int64_t d, float* to) {
    float mixes[STREAMS];
    hyper_mixes(0, 1, d, STREAMS, 0, STREAMS, streams, fn, mixes);
    const float factor = hyper_scale(streams, STREAMS * d, norm_eps);
    for (float& mix : mixes) mix *= factor;
    hyper_collapse_row(streams, mixes, base, scale, eps, d, to);
}

// to = Σ_i weights[i] · rows[i], in their order, plus `last`.
inline void weighted_sum(const float* const* rows, const float* weights, std::int64_t count, const float* last,
                         std::int64_t d, float* to) {
    for (std::int64_t i = 0; i < d; i += WIDTH) {
        const std::int64_t part = std::min<std::int64_t>(WIDTH, d - i);
        const auto at = [&](const float* from) { return part == WIDTH ? load(from + i) : load_part(from + i, part); };
        Vec total{};
        for (std::int64_t r = 0; r < count; ++r) total += at(rows[r]) * weights[r];
        total += at(last);
        part == WIDTH ? store(to + i, total) : store_part(to + i, total, part);
    }
}

}  // namespace narrows::NARROWS_ISA
