// Products of rows with packed weights in floats, for any instruction set and format; inputs float or BF16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "formats.hpp"
#include "packed.hpp"
#include "product.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// The scales of a chunk, one a row of the panel.
inline void chunk_scales(const Packed& w, std::int64_t block, std::int64_t blocks, std::int64_t chunk, float* to) {
    for (std::int64_t b = 0; b < blocks; ++b)
        for (std::int64_t r = 0; r < BLOCK_ROWS; ++r) {
            const std::int64_t at = (block + b) * w.chunks() + chunk;
            to[b * BLOCK_ROWS + r] = w.format == Format::BF16  ? 1.0f
                                     : w.format == Format::FP8 ? e8m0(w.scales[at])
                                                               : e8m0(w.scales[at * BLOCK_ROWS + r]);
        }
}

// The four columns of a group: of rows part · WIDTH .. of its block.
template <Format FORMAT>
inline __attribute__((always_inline)) void widen_group(const std::uint8_t* group, int part, Vec columns[GROUP]) {
    if constexpr (FORMAT == Format::BF16) {
        for (int half = 0; half < 2; ++half) {
            Ints bits;
            std::memcpy(&bits, group + half * 64 + part * WIDTH * 4, sizeof bits);
            columns[2 * half] = bits_as_floats(bits << 16);
            columns[2 * half + 1] = bits_as_floats(bits & static_cast<std::int32_t>(0xffff0000u));
        }
    } else if constexpr (FORMAT == Format::FP8) {
        for (int half = 0; half < 2; ++half) {
            const Ints codes = halves(group + part * WIDTH * 4 + half * 8, 16);
            columns[2 * half] = e4m3_floats(codes & 0xff);
            columns[2 * half + 1] = e4m3_floats(codes >> 8);
        }
    } else {
        const Ints codes = halves(group + part * WIDTH * 2, 8);
        columns[0] = e2m1_floats(codes & 15);
        columns[1] = e2m1_floats((codes >> 8) & 15);
        columns[2] = e2m1_floats((codes >> 4) & 15);
        columns[3] = e2m1_floats(codes >> 12);
    }
}

// A chunk of a panel as floats: to[column][row of the panel].
template <Format FORMAT>
inline void widen_panel(const Packed& w, std::int64_t block, std::int64_t blocks, std::int64_t begin,
                        std::int64_t end, float* to) {
    const std::int64_t apart = blocks * BLOCK_ROWS, bytes = w.group_bytes();
    for (std::int64_t b = 0; b < blocks; ++b) {
        const std::uint8_t* from = w.values + (block + b) * w.block_bytes() + begin / GROUP * bytes;
        for (std::int64_t column = begin; column < end; column += GROUP, from += bytes)
            for (int part = 0; part < PARTS; ++part) {
                Vec columns[GROUP];
                widen_group<FORMAT>(from, part, columns);
                for (int c = 0; c < GROUP; ++c)
                    store(to + (column - begin + c) * apart + b * BLOCK_ROWS + part * WIDTH, columns[c]);
            }
    }
}

inline float as_float(float value) { return value; }
inline float as_float(std::uint16_t value) { return wide(value); }

// A row's results to where they belong, without those that only fill the last block.
inline void give_row(const Packed& w, std::int64_t block, std::int64_t blocks, const float* from, float* y) {
    const std::int64_t first = block * BLOCK_ROWS, count = std::min(blocks * BLOCK_ROWS, w.rows - first);
    std::memcpy(y + first, from, sizeof(float) * count);
}

// Many rows in floats: a chunk of the panel is made floats once and used for all of them.
template <Format FORMAT, typename Input>
void many_wide(const Packed& w, std::int64_t block, std::int64_t blocks, const Input* const* x, float* const* y,
               std::int64_t count) {
    alignas(64) float panel[128 * PANEL * BLOCK_ROWS];
    alignas(64) float inputs[(SUPERTILE + TALLEST) * 128];
    alignas(64) float totals[SUPERTILE * PANEL * BLOCK_ROWS];
    alignas(64) float scales[PANEL * BLOCK_ROWS];
    const std::int64_t width = blocks * BLOCK_ROWS;
    for (std::int64_t start = 0; start < count; start += SUPERTILE) {
        const std::int64_t rows = std::min(SUPERTILE, count - start);
        std::fill(totals, totals + rows * width, 0.0f);
        for (std::int64_t chunk = 0; chunk < w.chunks(); ++chunk) {
            const std::int64_t begin = chunk * w.chunk(), end = std::min(begin + w.chunk(), w.padded_columns());
            const std::int64_t length = end - begin, given = std::min(end, w.columns) - begin;
            widen_panel<FORMAT>(w, block, blocks, begin, end, panel);
            chunk_scales(w, block, blocks, chunk, scales);
            for (std::int64_t r = 0; r < rows + TALLEST; ++r) {
                float* to = inputs + r * length;
                const std::int64_t known = r < rows ? given : 0;
                for (std::int64_t i = 0; i < known; ++i) to[i] = as_float(x[start + r][begin + i]);
                std::fill(to + known, to + length, 0.0f);
            }
            const Factors factors[] = {{inputs, length, 1, panel, width}};
            product(factors, rows, width, length, [&](std::int64_t row, std::int64_t column, Vec sum) {
                float* total = totals + row * width + column;
                store(total, load(total) + sum * load(scales + column));
            });
        }
        for (std::int64_t r = 0; r < rows; ++r) give_row(w, block, blocks, totals + r * width, y[start + r]);
    }
}

// A few rows in floats: weights become floats in registers.
template <Format FORMAT, int ROWS, int BLOCKS, typename Input>
void few_wide(const Packed& w, std::int64_t block, const Input* const* x, float* const* y) {
    constexpr int VECTORS_EACH = BLOCKS * PARTS;
    const std::int64_t apart = w.block_bytes(), bytes = w.group_bytes(), whole = w.columns / GROUP * GROUP;
    const std::uint8_t* from = w.values + block * apart;
    Vec totals[ROWS][VECTORS_EACH] = {};
    for (std::int64_t chunk = 0; chunk < w.chunks(); ++chunk) {
        const std::int64_t begin = chunk * w.chunk(), end = std::min(begin + w.chunk(), w.padded_columns());
        Vec sums[ROWS][VECTORS_EACH] = {};
        for (std::int64_t column = begin; column < end; column += GROUP) {
            float inputs[ROWS][GROUP] = {};
            for (int r = 0; r < ROWS; ++r)
                for (std::int64_t c = 0; c < (column < whole ? GROUP : w.columns - whole); ++c)
                    inputs[r][c] = as_float(x[r][column + c]);
            for (int v = 0; v < VECTORS_EACH; ++v) {
                Vec weights[GROUP];
                widen_group<FORMAT>(from + v / PARTS * apart + column / GROUP * bytes, v % PARTS, weights);
                for (int c = 0; c < GROUP; ++c)
                    for (int r = 0; r < ROWS; ++r) sums[r][v] += inputs[r][c] * weights[c];
            }
        }
        alignas(64) float scales[BLOCKS * BLOCK_ROWS];
        chunk_scales(w, block, BLOCKS, chunk, scales);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS_EACH; ++v) totals[r][v] += sums[r][v] * load(scales + v * WIDTH);
    }
    for (int r = 0; r < ROWS; ++r) {
        alignas(64) float row[BLOCKS * BLOCK_ROWS];
        for (int v = 0; v < VECTORS_EACH; ++v) store(row + v * WIDTH, totals[r][v]);
        give_row(w, block, BLOCKS, row, y[r]);
    }
}

constexpr std::int64_t TOGETHER = 4;  // blocks whose sums are under way at once

template <Format FORMAT, typename Input>
void product_wide(const Packed& w, std::int64_t block, std::int64_t blocks, const Input* const* x, float* const* y,
                  std::int64_t count) {
    if (count > 2) {
        many_wide<FORMAT>(w, block, blocks, x, y, count);
        return;
    }
    const auto few = [&](auto rows) {
        std::int64_t b = 0;
        for (; b + TOGETHER <= blocks; b += TOGETHER) few_wide<FORMAT, rows, TOGETHER>(w, block + b, x, y);
        for (; b < blocks; ++b) few_wide<FORMAT, rows, 1>(w, block + b, x, y);
    };
    count == 1 ? few(std::integral_constant<int, 1>{}) : few(std::integral_constant<int, 2>{});
}

}  // namespace narrows::NARROWS_ISA
