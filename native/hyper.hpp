// Hyper-connections (mHC): what a sub-layer reads of four streams, and what returns to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

constexpr int ROWS = 4;     // rows that share what is loaded of fn
constexpr int OUTPUTS = 4;  // rows of fn that share what is loaded of the streams

// products[r][m] = rows[r] · fn[m] for ROWS rows of `length`, in one order of summation whatever the others are.
inline void row_products(const float* const rows[ROWS], const float* fn, std::int64_t length,
                         std::int64_t outputs, float* const products[ROWS]) {
    for (std::int64_t m = 0; m < outputs; m += OUTPUTS) {
        const float* weights[OUTPUTS];
        for (int o = 0; o < OUTPUTS; ++o) weights[o] = fn + std::min(m + o, outputs - 1) * length;
        Vec sums[ROWS][OUTPUTS] = {};
        std::int64_t i = 0;
        for (; i + WIDTH <= length; i += WIDTH) {
            Vec w[OUTPUTS];
            for (int o = 0; o < OUTPUTS; ++o) w[o] = load(weights[o] + i);
            for (int r = 0; r < ROWS; ++r) {
                const Vec x = load(rows[r] + i);
                for (int o = 0; o < OUTPUTS; ++o) sums[r][o] += x * w[o];
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int o = 0; o < OUTPUTS && m + o < outputs; ++o) {
                float rest = 0;
                for (std::int64_t j = i; j < length; ++j) rest += rows[r][j] * weights[o][j];
                products[r][m + o] = sum(sums[r][o]) + rest;
            }
    }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

inline void hyper_read(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t mixes_count,
                       const float* streams, const float* fn, const float* base, float scale, float eps,
                       float norm_eps, float* out, float* mixes, float* inverse) {
    const std::int64_t length = STREAMS * d;
    for (std::int64_t n = begin; n < end; n += ROWS) {
        const int count = static_cast<int>(std::min<std::int64_t>(ROWS, end - n));
        const float* rows[ROWS];
        float* products[ROWS];
        for (int r = 0; r < ROWS; ++r) {  // missing rows repeat the last
            rows[r] = streams + (n + std::min(r, count - 1)) * length;
            products[r] = mixes + (n + std::min(r, count - 1)) * mixes_count;
        }
        row_products(rows, fn, length, mixes_count, products);
        for (int r = 0; r < count; ++r) {
            const float* h = rows[r];
            const float factor = 1.0f / std::sqrt(dot(h, h, length) / static_cast<float>(length) + norm_eps);
            inverse[n + r] = factor;
            for (std::int64_t m = 0; m < mixes_count; ++m) products[r][m] *= factor;
            float weights[STREAMS];
            for (int s = 0; s < STREAMS; ++s) weights[s] = sigmoid(products[r][s] * scale + base[s]) + eps;
            float* to = out + (n + r) * d;
            std::int64_t i = 0;
            for (; i + WIDTH <= d; i += WIDTH) {
                Vec total = load(h + i) * weights[0];
                for (int s = 1; s < STREAMS; ++s) total += load(h + s * d + i) * weights[s];
                store(to + i, total);
            }
            for (; i < d; ++i) {
                float total = h[i] * weights[0];
                for (int s = 1; s < STREAMS; ++s) total += h[s * d + i] * weights[s];
                to[i] = total;
            }
        }
    }
}

inline void hyper_read_gradient(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t mixes_count,
                                const float* streams, const float* fn, const float* base, float scale, float eps,
                                const float* mixes, const float* inverse, const float* by_out,
                                const float* by_others, float* by_streams, float* scaled, float* by_pre) {
    const std::int64_t length = STREAMS * d, others = mixes_count - STREAMS;
    for (std::int64_t n = begin; n < end; n += ROWS) {
        const int count = static_cast<int>(std::min<std::int64_t>(ROWS, end - n));
        const float *rows[ROWS], *upper[ROWS], *factors[ROWS];
        float along[ROWS], weights[ROWS][STREAMS];
        for (int r = 0; r < ROWS; ++r) {
            const std::int64_t row = n + std::min(r, count - 1);
            rows[r] = streams + row * length;
            upper[r] = by_out + row * d;
            factors[r] = scaled + row * mixes_count;
        }
        for (int r = 0; r < count; ++r) {
            const std::int64_t row = n + r;
            const float* mix = mixes + row * mixes_count;
            float* to = scaled + row * mixes_count;
            for (int s = 0; s < STREAMS; ++s) {
                const float gate = sigmoid(mix[s] * scale + base[s]);
                const float by = dot(rows[r] + s * d, upper[r], d) * gate * (1 - gate);
                weights[r][s] = gate + eps;
                by_pre[row * STREAMS + s] = by;
                to[s] = by * scale;
            }
            for (std::int64_t m = 0; m < others; ++m) to[STREAMS + m] = by_others[row * others + m];
            float total = 0;
            for (std::int64_t m = 0; m < mixes_count; ++m) total += to[m] * mix[m];
            along[r] = -total * inverse[row] * inverse[row] / static_cast<float>(length);
            for (std::int64_t m = 0; m < mixes_count; ++m) to[m] *= inverse[row];
        }
        for (int r = count; r < ROWS; ++r) {
            along[r] = along[count - 1];
            std::copy(weights[count - 1], weights[count - 1] + STREAMS, weights[r]);
        }
        for (int s = 0; s < STREAMS; ++s) {
            std::int64_t i = 0;
            for (; i + WIDTH <= d; i += WIDTH) {
                const std::int64_t at = s * d + i;
                Vec total[ROWS];
                for (int r = 0; r < ROWS; ++r)
                    total[r] = load(rows[r] + at) * along[r] + load(upper[r] + i) * weights[r][s];
                for (std::int64_t m = 0; m < mixes_count; ++m) {
                    const Vec w = load(fn + m * length + at);
                    for (int r = 0; r < ROWS; ++r) total[r] += w * factors[r][m];
                }
                for (int r = 0; r < count; ++r) store(by_streams + (n + r) * length + at, total[r]);
            }
            for (; i < d; ++i) {
                const std::int64_t at = s * d + i;
                for (int r = 0; r < count; ++r) {
                    float total = rows[r][at] * along[r] + upper[r][i] * weights[r][s];
                    for (std::int64_t m = 0; m < mixes_count; ++m) total += fn[m * length + at] * factors[r][m];
                    by_streams[(n + r) * length + at] = total;
                }
            }
        }
    }
}

inline void hyper_strengths(std::int64_t begin, std::int64_t end, const float* logits, float* result) {
    for (std::int64_t i = begin * STREAMS; i < end * STREAMS; ++i) result[i] = 2.0f * sigmoid(logits[i]);
}

// The result may be the streams themselves.
inline void hyper_post(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams, const float* out,
                       const float* post, const float* comb, float* result) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float *h = streams + n * STREAMS * d, *x = out + n * d, *p = post + n * STREAMS;
        const float* c = comb + n * STREAMS * STREAMS;
        float* to = result + n * STREAMS * d;
        std::int64_t i = 0;
        for (; i + WIDTH <= d; i += WIDTH) {
            Vec old[STREAMS];
            const Vec own = load(x + i);
            for (int j = 0; j < STREAMS; ++j) old[j] = load(h + j * d + i);
            for (int k = 0; k < STREAMS; ++k) {
                Vec total = own * p[k];
                for (int j = 0; j < STREAMS; ++j) total += old[j] * c[j * STREAMS + k];
                store(to + k * d + i, total);
            }
        }
        for (; i < d; ++i) {
            float old[STREAMS];
            const float own = x[i];
            for (int j = 0; j < STREAMS; ++j) old[j] = h[j * d + i];
            for (int k = 0; k < STREAMS; ++k) {
                float total = own * p[k];
                for (int j = 0; j < STREAMS; ++j) total += old[j] * c[j * STREAMS + k];
                to[k * d + i] = total;
            }
        }
    }
}

inline void hyper_post_gradient(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams,
                                const float* out, const float* post, const float* comb, const float* by_result,
                                float* by_streams, float* by_out, float* by_post, float* by_comb) {
    for (std::int64_t n = begin; n < end; ++n) {
        const float *h = streams + n * STREAMS * d, *x = out + n * d, *p = post + n * STREAMS;
        const float *c = comb + n * STREAMS * STREAMS, *g = by_result + n * STREAMS * d;
        float *to = by_streams + n * STREAMS * d, *to_out = by_out + n * d;
        Vec by_p[STREAMS] = {}, by_c[STREAMS][STREAMS] = {};
        std::int64_t i = 0;
        for (; i + WIDTH <= d; i += WIDTH) {
            Vec upper[STREAMS];
            const Vec own = load(x + i);
            Vec total_out{};
            for (int k = 0; k < STREAMS; ++k) {
                upper[k] = load(g + k * d + i);
                total_out += upper[k] * p[k];
                by_p[k] += upper[k] * own;
            }
            store(to_out + i, total_out);
            for (int j = 0; j < STREAMS; ++j) {
                const Vec old = load(h + j * d + i);
                Vec total{};
                for (int k = 0; k < STREAMS; ++k) {
                    total += upper[k] * c[j * STREAMS + k];
                    by_c[j][k] += old * upper[k];
                }
                store(to + j * d + i, total);
            }
        }
        float rest_p[STREAMS] = {}, rest_c[STREAMS][STREAMS] = {};
        for (; i < d; ++i) {
            float total_out = 0;
            for (int k = 0; k < STREAMS; ++k) {
                total_out += g[k * d + i] * p[k];
                rest_p[k] += g[k * d + i] * x[i];
            }
            to_out[i] = total_out;
            for (int j = 0; j < STREAMS; ++j) {
                float total = 0;
                for (int k = 0; k < STREAMS; ++k) {
                    total += g[k * d + i] * c[j * STREAMS + k];
                    rest_c[j][k] += h[j * d + i] * g[k * d + i];
                }
                to[j * d + i] = total;
            }
        }
        for (int k = 0; k < STREAMS; ++k) {
            by_post[n * STREAMS + k] = sum(by_p[k]) + rest_p[k];
            for (int j = 0; j < STREAMS; ++j)
                by_comb[(n * STREAMS + j) * STREAMS + k] = sum(by_c[j][k]) + rest_c[j][k];
        }
    }
}

}  // namespace narrows::NARROWS_ISA
