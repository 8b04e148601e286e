// Small matrix products whose sums stay in registers.
#pragma once

#include <cstdint>

#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// A tile of sums is TALL rows of up to WIDE vectors, which with their factors fill the registers.
constexpr int TALL = 6;
constexpr int WIDE = WIDTH == 16 ? 4 : 2;
// With rows of one vector: as many sums must be under way as an addition takes to be done.
constexpr int TALLEST = 2 * TALL;

// left(i, t) = left[i · left_row + t · left_step], and right(t) a row of vectors, right_row floats apart.
struct Factors {
    const float* left;
    std::int64_t left_row, left_step;
    const float* right;
    std::int64_t right_row;
};

template <int ROWS, int COLUMNS>
inline __attribute__((always_inline)) void add_products(Vec (&sums)[ROWS][COLUMNS], const Factors& factors,
                                                        std::int64_t row, std::int64_t column, std::int64_t length) {
    const std::int64_t apart = factors.left_row, step = factors.left_step;
    const float *left = factors.left + row * apart, *right = factors.right + column;
    for (std::int64_t t = 0; t < length; ++t) {
        Vec loaded[COLUMNS];
        for (int v = 0; v < COLUMNS; ++v) loaded[v] = load(right + v * WIDTH);
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < COLUMNS; ++v) sums[i][v] += left[i * apart] * loaded[v];
        left += step;
        right += factors.right_row;
    }
}

template <int ROWS, int COLUMNS, int COUNT, typename Take>
inline void product_columns(const Factors (&factors)[COUNT], std::int64_t rows, std::int64_t row,
                            std::int64_t column, std::int64_t length, const Take& take) {
    Vec sums[ROWS][COLUMNS] = {};
    for (int f = 0; f < COUNT; ++f) add_products(sums, factors[f], row, column, length);
    for (int i = 0; i < ROWS && row + i < rows; ++i)
        for (int v = 0; v < COLUMNS; ++v) take(row + i, column + v * WIDTH, sums[i][v]);
}

// Hands take(i, column, vector) every Σ_t left(i, t) · right(t), summed in the order of t, over all factors one behind
// the other, for i below `rows` and columns below `columns`, which fill vectors. Reads up to TALLEST - 1 rows of
// `left` more.
template <int COUNT, typename Take>
inline void product(const Factors (&factors)[COUNT], std::int64_t rows, std::int64_t columns, std::int64_t length,
                    const Take& take) {
    if (columns == WIDTH) {
        for (std::int64_t row = 0; row < rows; row += TALLEST)
            product_columns<TALLEST, 1>(factors, rows, row, 0, length, take);
        return;
    }
    for (std::int64_t row = 0; row < rows; row += TALL)
        for (std::int64_t column = 0; column < columns; column += WIDE * WIDTH) {
            const std::int64_t wide = (columns - column) / WIDTH;
            if (wide >= WIDE) {
                product_columns<TALL, WIDE>(factors, rows, row, column, length, take);
            } else if (wide == 1) {
                product_columns<TALL, 1>(factors, rows, row, column, length, take);
            } else if constexpr (WIDE > 2) {
                wide == 2 ? product_columns<TALL, 2>(factors, rows, row, column, length, take)
                          : product_columns<TALL, 3>(factors, rows, row, column, length, take);
            }
        }
}

}  // namespace narrows::NARROWS_ISA
