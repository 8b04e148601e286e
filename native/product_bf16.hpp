// Products of rows with packed weights where the instruction set multiplies pairs of BF16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "formats.hpp"
#include "packed.hpp"
#include "product_wide.hpp"

namespace narrows::NARROWS_ISA {

#ifdef NARROWS_BF16_PRODUCTS

// Products of pairs in BF16, sums in float32. Weights become BF16 exactly, whatever their format; their scales come
// last, as floats.
struct BF16Weights {
    static constexpr std::int64_t BYTES = 128, GROUPS = 32;
    static void decode(const std::uint8_t* at, __m512i& first, __m512i& second) {
        first = _mm512_loadu_si512(at);
        second = _mm512_loadu_si512(at + 64);
    }
};

// The bytes of every E4M3's BF16. Known to the compiler: what is computed when the module is loaded would be computed
// with these instructions on machines that do not have them.
struct FP8Tables {
    alignas(64) std::uint8_t low[128]{}, high[128]{};
    constexpr FP8Tables() {
        for (int i = 0; i < 128; ++i) {
            int exponent = i >> 3, mantissa = i & 7;
            if (exponent == 0) {  // mantissa · 2^-9
                for (exponent = 1; mantissa != 0 && mantissa < 8; mantissa *= 2) --exponent;
                mantissa &= 7;
            }
            const int value = i == 0 ? 0 : i == 127 ? 0x7fc0 : (exponent + 120) << 7 | mantissa << 4;
            low[i] = static_cast<std::uint8_t>(value & 255);
            high[i] = static_cast<std::uint8_t>(value >> 8);
        }
    }
};
inline constexpr FP8Tables fp8_tables;

struct FP8Weights {
    static constexpr std::int64_t BYTES = 64, GROUPS = 32;
    static void decode(const std::uint8_t* at, __m512i& first, __m512i& second) {
        const auto table = [](const std::uint8_t* from) { return _mm512_load_si512(from); };
        const __m512i codes = _mm512_loadu_si512(at);
        const __m512i low = _mm512_permutex2var_epi8(table(fp8_tables.low), codes, table(fp8_tables.low + 64));
        const __m512i high = _mm512_permutex2var_epi8(table(fp8_tables.high), codes, table(fp8_tables.high + 64));
        // high | (codes & 0x80)
        const __m512i with_sign = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), 0xf8);
        first = _mm512_unpacklo_epi8(low, with_sign);
        second = _mm512_unpackhi_epi8(low, with_sign);
    }
};

// BF16 of E2M1's 16 codes, twice: an index has five bits, of which the fifth is another code's.
alignas(64) inline constexpr std::uint16_t fp4_table[32] = {
    0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
    0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
    0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
    0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};

struct MXFP4Weights {
    static constexpr std::int64_t BYTES = 32, GROUPS = 8;
    static void decode(const std::uint8_t* at, __m512i& first, __m512i& second) {
        const __m512i table = _mm512_load_si512(fp4_table);
        const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
        first = _mm512_permutexvar_epi16(codes, table);
        second = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    }
};

inline __m512 add_pairs(__m512 sum, __m512i weights, __m512i inputs) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)inputs);
}

inline __m512i pair(const std::uint16_t* at) {
    std::int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return _mm512_set1_epi32(bits);
}

template <typename Weights>
inline __m512 scale_of(const Packed& w, std::int64_t block, std::int64_t chunk) {
    if constexpr (Weights::BYTES == 128) return _mm512_set1_ps(1.0f);
    const std::int64_t at = block * w.chunks() + chunk;
    if constexpr (Weights::BYTES == 64) return _mm512_set1_ps(e8m0(w.scales[at]));
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at * BLOCK_ROWS)));
    __m512i bits = _mm512_slli_epi32(bytes, 23);
    bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(bytes, _mm512_setzero_si512()), _mm512_set1_epi32(0x400000));
    bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255)), _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(bits);
}

inline void give_block(const Packed& w, std::int64_t block, __m512 value, float* y) {
    const std::int64_t left = w.rows - block * BLOCK_ROWS;
    if (left >= BLOCK_ROWS) {
        _mm512_storeu_ps(y + block * BLOCK_ROWS, value);
    } else {
        _mm512_mask_storeu_ps(y + block * BLOCK_ROWS, static_cast<__mmask16>((1u << left) - 1), value);
    }
}

// A few rows: weights are decoded in registers, on their way from memory.
template <typename Weights, int ROWS, int BLOCKS>
inline void product_few(const Packed& w, std::int64_t block, const std::uint16_t* const* x, float* const* y) {
    const std::int64_t groups = w.padded_columns() / GROUP, apart = w.block_bytes();
    const std::uint8_t* from = w.values + block * apart;
    __m512 totals[ROWS][BLOCKS];
    for (int r = 0; r < ROWS; ++r)
        for (int b = 0; b < BLOCKS; ++b) totals[r][b] = _mm512_setzero_ps();
    for (std::int64_t chunk = 0, first = 0; first < groups; ++chunk, first += Weights::GROUPS) {
        const std::int64_t last = std::min(first + Weights::GROUPS, groups);
        __m512 sums[ROWS][BLOCKS];
        for (int r = 0; r < ROWS; ++r)
            for (int b = 0; b < BLOCKS; ++b) sums[r][b] = _mm512_setzero_ps();
        for (std::int64_t group = first; group < last; ++group) {
            const std::uint8_t* at = from + group * Weights::BYTES;
            for (int b = 0; b < BLOCKS; ++b) {
                __m512i one, two;
                Weights::decode(at + b * apart, one, two);
                for (int r = 0; r < ROWS; ++r) {
                    sums[r][b] = add_pairs(sums[r][b], one, pair(x[r] + group * GROUP));
                    sums[r][b] = add_pairs(sums[r][b], two, pair(x[r] + group * GROUP + 2));
                }
            }
        }
        for (int b = 0; b < BLOCKS; ++b) {
            const __m512 scale = scale_of<Weights>(w, block + b, chunk);
            for (int r = 0; r < ROWS; ++r) totals[r][b] = _mm512_fmadd_ps(sums[r][b], scale, totals[r][b]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int b = 0; b < BLOCKS; ++b) give_block(w, block + b, totals[r][b], y[r]);
}

template <int ROWS, int BLOCKS>
inline void add_tile(const std::uint16_t* panel, const std::uint16_t* const* x, std::int64_t begin,
                     std::int64_t pairs, const __m512* scales, float* totals, std::int64_t width) {
    __m512 sums[ROWS][BLOCKS];
    for (int r = 0; r < ROWS; ++r)
        for (int b = 0; b < BLOCKS; ++b) sums[r][b] = _mm512_setzero_ps();
    for (std::int64_t p = 0; p < pairs; ++p) {
        __m512i weights[BLOCKS];
        for (int b = 0; b < BLOCKS; ++b) weights[b] = _mm512_load_si512(panel + (p * BLOCKS + b) * 32);
        for (int r = 0; r < ROWS; ++r) {
            const __m512i inputs = pair(x[r] + begin + 2 * p);
            for (int b = 0; b < BLOCKS; ++b) sums[r][b] = add_pairs(sums[r][b], weights[b], inputs);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int b = 0; b < BLOCKS; ++b) {
            float* total = totals + r * width + b * BLOCK_ROWS;
            _mm512_store_ps(total, _mm512_fmadd_ps(sums[r][b], scales[b], _mm512_load_ps(total)));
        }
}

// Many rows: a chunk of the panel is decoded once and used for all of them.
template <typename Weights, int BLOCKS>
inline void product_many(const Packed& w, std::int64_t block, const std::uint16_t* const* x, float* const* y,
                         std::int64_t count) {
    constexpr std::int64_t width = BLOCKS * BLOCK_ROWS;
    alignas(64) std::uint16_t panel[Weights::GROUPS * 2 * BLOCKS * 32];
    alignas(64) float totals[SUPERTILE * width];
    const std::int64_t groups = w.padded_columns() / GROUP, apart = w.block_bytes();
    for (std::int64_t start = 0; start < count; start += SUPERTILE) {
        const std::int64_t rows = std::min(SUPERTILE, count - start);
        std::fill(totals, totals + rows * width, 0.0f);
        for (std::int64_t chunk = 0, first = 0; first < groups; ++chunk, first += Weights::GROUPS) {
            const std::int64_t last = std::min(first + Weights::GROUPS, groups);
            __m512 scales[BLOCKS];
            for (int b = 0; b < BLOCKS; ++b) {
                const std::uint8_t* from = w.values + (block + b) * apart;
                for (std::int64_t group = first; group < last; ++group) {
                    __m512i one, two;
                    Weights::decode(from + group * Weights::BYTES, one, two);
                    _mm512_store_si512(panel + (((group - first) * 2) * BLOCKS + b) * 32, one);
                    _mm512_store_si512(panel + (((group - first) * 2 + 1) * BLOCKS + b) * 32, two);
                }
                scales[b] = scale_of<Weights>(w, block + b, chunk);
            }
            const std::int64_t begin = first * GROUP, pairs = (last - first) * 2;
            // Tiles of up to 6 rows, none much smaller than another: short ones wait for their own sums.
            const std::int64_t tiles = (rows + 5) / 6;
            for (std::int64_t tile = 0, r = 0; tile < tiles; ++tile) {
                const std::int64_t next = rows * (tile + 1) / tiles;
                const auto add = [&](auto count) {
                    add_tile<count, BLOCKS>(panel, x + start + r, begin, pairs, scales, totals + r * width, width);
                };
                switch (next - r) {
                    case 1: add(std::integral_constant<int, 1>{}); break;
                    case 2: add(std::integral_constant<int, 2>{}); break;
                    case 3: add(std::integral_constant<int, 3>{}); break;
                    case 4: add(std::integral_constant<int, 4>{}); break;
                    case 5: add(std::integral_constant<int, 5>{}); break;
                    default: add(std::integral_constant<int, 6>{});
                }
                r = next;
            }
        }
        for (std::int64_t r = 0; r < rows; ++r) give_row(w, block, BLOCKS, totals + r * width, y[start + r]);
    }
}

template <typename Weights, int BLOCKS>
inline void product_blocks(const Packed& w, std::int64_t block, const std::uint16_t* const* x, float* const* y,
                           std::int64_t count) {
    switch (count) {
        case 1: product_few<Weights, 1, BLOCKS>(w, block, x, y); break;
        case 2: product_few<Weights, 2, BLOCKS>(w, block, x, y); break;
        case 3: product_few<Weights, 3, BLOCKS>(w, block, x, y); break;
        case 4: product_few<Weights, 4, BLOCKS>(w, block, x, y); break;
        default: product_many<Weights, BLOCKS>(w, block, x, y, count);
    }
}

template <typename Weights>
inline void product_panel(const Packed& w, std::int64_t block, std::int64_t blocks, const std::uint16_t* const* x,
                          float* const* y, std::int64_t count) {
    if (blocks == PANEL && count == 1) {  // one row's sums are few: those of all blocks at once
        product_few<Weights, 1, PANEL>(w, block, x, y);
        return;
    }
    if (blocks > 4) {
        product_blocks<Weights, 4>(w, block, x, y, count);
        block += 4, blocks -= 4;
    }
    switch (blocks) {
        case 1: product_blocks<Weights, 1>(w, block, x, y, count); break;
        case 2: product_blocks<Weights, 2>(w, block, x, y, count); break;
        case 3: product_blocks<Weights, 3>(w, block, x, y, count); break;
        default: product_blocks<Weights, 4>(w, block, x, y, count);
    }
}

#endif

}  // namespace narrows::NARROWS_ISA
