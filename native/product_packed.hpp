// Products of rows with packed weights: y[n] = W · x[n].
//
// The sum of an output goes over the columns in order, a chunk at a time: the chunk's products are added up from 0,
// then times their scale onto the total. Neither the other rows, nor how the work is cut, change a bit of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "packed.hpp"
#include "product.hpp"
#include "vector.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define NARROWS_BF16_PRODUCTS
#endif

namespace narrows::NARROWS_ISA {

inline float wide(std::uint16_t bf16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest, ties to even; what is not a number stays so.
inline std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void round_row(const float* from, std::int64_t count, std::uint16_t* to) {
    std::int64_t i = 0;
#ifdef NARROWS_BF16_PRODUCTS
    // In integers: the instruction for it would take denormals for 0.
    for (; i + 16 <= count; i += 16) {
        const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(from + i));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        const __mmask16 nan = _mm512_cmpgt_epu32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)),
                                                      _mm512_set1_epi32(0x7f800000));
        rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
#endif
    for (; i < count; ++i) to[i] = to_bf16(from[i]);
}

// 2^(byte - 127); 255 is not a number.
inline float e8m0(std::uint8_t byte) {
    const std::uint32_t bits = byte == 255 ? 0x7fc00000u : byte == 0 ? 0x00400000u : static_cast<std::uint32_t>(byte) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float e4m3(std::uint8_t byte) {
    const int exponent = (byte >> 3) & 15, mantissa = byte & 7;
    if (exponent == 15 && mantissa == 7) return std::nanf("");
    const int steps = exponent == 0 ? mantissa : (8 + mantissa) << (exponent - 1);
    return (byte & 128 ? -1.0f : 1.0f) * static_cast<float>(steps) * 0x1p-9f;
}

inline float e2m1(std::uint8_t code) {
    constexpr float values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    return code & 8 ? -values[code & 7] : values[code & 7];
}

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

typedef std::uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef std::uint8_t Bytes __attribute__((vector_size(WIDTH)));

// In the instruction set's own words: the compiler would take lane by lane.
inline Ints widen(Halves from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu16_epi32((__m256i)from);
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu16_epi32((__m128i)from);
#else
    return __builtin_convertvector(from, Ints);
#endif
}

inline Ints widen_bytes(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    Bytes codes;
    std::memcpy(&codes, from, sizeof codes);
    return __builtin_convertvector(codes, Ints);
#endif
}
constexpr int PARTS = static_cast<int>(BLOCK_ROWS) / WIDTH;  // vectors that a block's rows fill

inline Vec bits_as_floats(Ints bits) {
    Vec value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// WIDTH 16-bit numbers in pieces of four, which lie `apart` bytes apart.
inline Ints halves(const std::uint8_t* from, std::int64_t apart) {
    constexpr int PIECES = WIDTH / 4;
    typedef std::int64_t Pieces __attribute__((vector_size(8 * PIECES)));
    Pieces pieces;
    for (int piece = 0; piece < PIECES; ++piece) {  // into registers: memory would make the whole wait for its parts
        std::int64_t value;
        std::memcpy(&value, from + piece * apart, 8);
        pieces[piece] = value;
    }
    Halves found;
    std::memcpy(&found, &pieces, sizeof found);
    return widen(found);
}

inline Ints floats_as_bits(Vec value) {
    Ints bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline Vec e4m3_floats(Ints codes) {
    // As a float the code's exponent is 120 too small, below the normal numbers too.
    const Ints size = codes & 0x7f;
    const Vec value = bits_as_floats(size << 20) * 0x1p120f;
    const Ints none = (size == 0x7f) & 0x7fc00000;
    return bits_as_floats(floats_as_bits(value) | ((codes & 0x80) << 24) | none);
}

inline Vec e2m1_floats(Ints codes) {
#if defined(__AVX2__)
    // A permutation is a look-up in as many values as a vector has lanes: with signs or without.
    constexpr float sizes[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    Vec table;
    std::memcpy(&table, sizes, sizeof table);
    const Vec value = __builtin_shuffle(table, codes);
    return WIDTH == 16 ? value : bits_as_floats(floats_as_bits(value) | ((codes & 8) << 28));
#else
    const Ints exponent = (codes >> 1) & 3, mantissa = codes & 1;
    const Ints steps = exponent == 0 ? mantissa : (mantissa | 2) << ((exponent - 1) & 3);
    const Vec value = __builtin_convertvector(steps, Vec) * 0.5f;
    return bits_as_floats(floats_as_bits(value) | ((codes & 8) << 28));
#endif
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
    alignas(64) float inputs[(SUPERTILE + TALL) * 128];
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
            for (std::int64_t r = 0; r < rows + TALL; ++r) {
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

template <Format FORMAT, typename Input>
void product_wide(const Packed& w, std::int64_t block, std::int64_t blocks, const Input* const* x, float* const* y,
                  std::int64_t count) {
    if (count > 2) {
        many_wide<FORMAT>(w, block, blocks, x, y, count);
        return;
    }
    const auto few = [&](auto rows) {
        if (blocks == PANEL) {
            few_wide<FORMAT, rows, PANEL>(w, block, x, y);
        } else {
            for (std::int64_t b = 0; b < blocks; ++b) few_wide<FORMAT, rows, 1>(w, block + b, x, y);
        }
    };
    count == 1 ? few(std::integral_constant<int, 1>{}) : few(std::integral_constant<int, 2>{});
}

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

struct MXFP4Weights {
    static constexpr std::int64_t BYTES = 32, GROUPS = 8;
    static void decode(const std::uint8_t* at, __m512i& first, __m512i& second) {
        // BF16 of the 16 codes, twice: the index has five bits, of which the fifth is another code's.
        alignas(64) static constexpr std::uint16_t values[32] = {
            0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
            0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
            0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
        const __m512i table = _mm512_load_si512(values);
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
    constexpr int ROWS = BLOCKS == 4 ? 6 : 8;
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
            std::int64_t r = 0;
            for (; r + ROWS <= rows; r += ROWS)
                add_tile<ROWS, BLOCKS>(panel, x + start + r, begin, pairs, scales, totals + r * width, width);
            for (; r + 2 <= rows; r += 2)
                add_tile<2, BLOCKS>(panel, x + start + r, begin, pairs, scales, totals + r * width, width);
            if (r < rows) add_tile<1, BLOCKS>(panel, x + start + r, begin, pairs, scales, totals + r * width, width);
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
    switch (blocks) {
        case 1: product_blocks<Weights, 1>(w, block, x, y, count); break;
        case 2: product_blocks<Weights, 2>(w, block, x, y, count); break;
        case 3: product_blocks<Weights, 3>(w, block, x, y, count); break;
        default: product_blocks<Weights, 4>(w, block, x, y, count);
    }
}

#endif

// x[r] BF16 [padded columns], zeros behind the last -> y[r][16 block ..]: what `blocks` (at most PANEL) give.
inline void product_rounded(const Packed& w, std::int64_t block, std::int64_t blocks, const std::uint16_t* const* x,
                            float* const* y, std::int64_t count) {
#ifdef NARROWS_BF16_PRODUCTS
    switch (w.format) {
        case Format::BF16: product_panel<BF16Weights>(w, block, blocks, x, y, count); break;
        case Format::FP8: product_panel<FP8Weights>(w, block, blocks, x, y, count); break;
        default: product_panel<MXFP4Weights>(w, block, blocks, x, y, count);
    }
#else
    switch (w.format) {
        case Format::BF16: product_wide<Format::BF16>(w, block, blocks, x, y, count); break;
        case Format::FP8: product_wide<Format::FP8>(w, block, blocks, x, y, count); break;
        default: product_wide<Format::MXFP4>(w, block, blocks, x, y, count);
    }
#endif
}

// The same of BF16 weights with float inputs [columns], which are taken as they are.
inline void product_exact(const Packed& w, std::int64_t block, std::int64_t blocks, const float* const* x,
                          float* const* y, std::int64_t count) {
    product_wide<Format::BF16>(w, block, blocks, x, y, count);
}

}  // namespace narrows::NARROWS_ISA
