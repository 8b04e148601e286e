// Numbers in few bits as floats, one by one and a vector at a time, and floats as BF16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
    // A permutation is a look-up in as many values as a vector has lanes: with signs or without.
#if defined(__AVX512F__)
    const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f,
                                        -2.0f, -3.0f, -4.0f, -6.0f);
    return (Vec)_mm512_permutexvar_ps((__m512i)codes, table);
#elif defined(__AVX2__)
    const __m256 table = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const Vec value = (Vec)_mm256_permutevar8x32_ps(table, (__m256i)codes);
    return bits_as_floats(floats_as_bits(value) | ((codes & 8) << 28));
#else
    const Ints exponent = (codes >> 1) & 3, mantissa = codes & 1;
    const Ints steps = exponent == 0 ? mantissa : (mantissa | 2) << ((exponent - 1) & 3);
    const Vec value = __builtin_convertvector(steps, Vec) * 0.5f;
    return bits_as_floats(floats_as_bits(value) | ((codes & 8) << 28));
#endif
}

}  // namespace narrows::NARROWS_ISA
