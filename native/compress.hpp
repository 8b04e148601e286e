// A compressor's window of tokens to one entry.
#pragma once

#include <cstdint>

#include "kernels.hpp"
#include "rows.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// Per channel a softmax over the tokens' gates weights what they give. rows[t]: kv [width], then gates [width]; with
// `overlap` width is 2 dim, rows are the previous window's and then its own (the previous ones null for the first), of
// which the first and the second half are read. ape [tokens, width] -> to [dim].
inline void compress_window(const float* const* rows, std::int64_t tokens, std::int64_t dim, bool overlap,
                            const float* ape, float* to) {
    const std::int64_t width = overlap ? 2 * dim : dim, count = overlap ? 2 * tokens : tokens;
    const std::int64_t skipped = overlap && !rows[0] ? tokens : 0;
    const auto channel = [&](std::int64_t t, std::int64_t i) { return overlap && t >= tokens ? dim + i : i; };
    const auto at = [&](const float* from, std::int64_t i) {
        return i + WIDTH <= dim ? load(from) : load_part(from, dim - i);
    };
    const auto gate = [&](std::int64_t t, std::int64_t i) {
        const std::int64_t c = channel(t, i);
        return at(rows[t] + width + c, i) + at(ape + (t % tokens) * width + c, i);
    };
    for (std::int64_t i = 0; i < dim; i += WIDTH) {
        Vec top = gate(skipped, i), total{}, sum{};
        for (std::int64_t t = skipped + 1; t < count; ++t) top = most(top, gate(t, i));
        for (std::int64_t t = skipped; t < count; ++t) {
            const Vec weight = exponential(gate(t, i) - top);
            total += weight;
            sum += weight * at(rows[t] + channel(t, i), i);
        }
        sum /= total;
        i + WIDTH <= dim ? store(to + i, sum) : store_part(to + i, sum, dim - i);
    }
}

}  // namespace narrows::NARROWS_ISA
