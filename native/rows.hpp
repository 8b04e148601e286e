// Single rows: norm, rotation, and the formats in which a history stores them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "formats.hpp"
#include "stored.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

// x / sqrt(mean(x²) + eps), times `weight` if there is one; `to` may be x.
inline void norm_row(const float* x, const float* weight, float eps, std::int64_t d, float* to) {
    const float factor = 1.0f / std::sqrt(dot(x, x, d) / static_cast<float>(d) + eps);
    std::int64_t i = 0;
    for (; i + WIDTH <= d; i += WIDTH) {
        const Vec scaled = load(x + i) * factor;
        store(to + i, weight ? scaled * load(weight + i) : scaled);
    }
    for (; i < d; ++i) to[i] = x[i] * factor * (weight ? weight[i] : 1.0f);
}

// The pairs of adjacent channels x [2 · pairs] by the angles whose cosines and sines these are.
inline void rotate_row(float* x, const float* cosines, const float* sines, std::int64_t pairs, bool back) {
    for (std::int64_t i = 0; i < pairs; ++i) {
        const float sine = back ? -sines[i] : sines[i];
        const float real = x[2 * i], imaginary = x[2 * i + 1];
        x[2 * i] = real * cosines[i] - imaginary * sine;
        x[2 * i + 1] = real * sine + imaginary * cosines[i];
    }
}

// Angles are float32, as in the checkpoints' reference.
inline void angles_row(std::int64_t position, const float* frequencies, std::int64_t pairs, float* cosines,
                       float* sines) {
    for (std::int64_t i = 0; i < pairs; ++i) {
        const float angle = static_cast<float>(position) * frequencies[i];
        cosines[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sines[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
}

// x [n] times the symmetric orthogonal Hadamard matrix, n a power of two.
inline void hadamard_row(float* x, std::int64_t n) {
    for (std::int64_t half = 1; half < n; half *= 2)
        for (std::int64_t start = 0; start < n; start += 2 * half)
            for (std::int64_t i = start; i < start + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    const float factor = 1.0f / std::sqrt(static_cast<float>(n));
    for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// The E8M0 byte of the smallest power of two under which `most` does not exceed mantissa · 2^exponent.
inline std::uint8_t scale_byte(float most, float limit_mantissa, int limit_exponent) {
    if (most == 0.0f) return 127;
    int exponent;
    const float mantissa = std::frexp(most, &exponent);
    exponent += (mantissa > limit_mantissa) - limit_exponent;
    return static_cast<std::uint8_t>(std::max(exponent, -127) + 127);
}

// To the nearest of E4M3, ties to even; |value| is at most 448.
inline std::uint8_t to_e4m3(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint8_t sign = static_cast<std::uint8_t>(bits >> 24 & 0x80);
    bits &= 0x7fffffff;
    float size;
    std::memcpy(&size, &bits, sizeof size);
    if (size < 0x1p-6f) return sign | static_cast<std::uint8_t>(std::nearbyint(size * 0x1p9f));
    bits += 0x7ffff + (bits >> 20 & 1);
    return sign | static_cast<std::uint8_t>((bits >> 20) - (120 << 3));
}

inline std::uint8_t to_e2m1(float value) {
    const float size = std::fabs(value);
    const float code = std::min(std::min(std::nearbyint(size * 2.0f), std::nearbyint(size) + 2.0f),
                                std::nearbyint(size * 0.5f) + 4.0f);
    return static_cast<std::uint8_t>(code) | (std::signbit(value) ? 8 : 0);
}

inline bool storable(const float* row, std::int64_t count) {
    bool fine = true;
    for (std::int64_t i = 0; i < count; ++i) fine &= std::fabs(row[i]) <= 0x1p127f;
    return fine;
}

inline float largest_of(const float* row, std::int64_t count) {
    float found = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) found = std::max(found, std::fabs(row[i]));
    return found;
}

// One that is not finite is read as not a number. FP4_KEYS turns the row by Hadamard's matrix, in place.
inline void encode_row(const RowFormat& format, float* row, std::uint8_t* to) {
    constexpr std::uint8_t NO_SCALE = 255;
    switch (format.storing) {
        case Storing::FLOAT32: std::memcpy(to, row, 4 * format.features); return;
        case Storing::BF16: round_row(row, format.features, reinterpret_cast<std::uint16_t*>(to)); return;
        case Storing::FP8_ENTRIES: {
            const bool fine = storable(row, format.features);
            const std::int64_t values = format.values();
            std::uint8_t* scales = to + values + 2 * format.rope;
            std::memset(to, 0, format.bytes());
            for (std::int64_t block = 0; block < format.scales(); ++block) {
                scales[block] = NO_SCALE;
                if (!fine) continue;
                const std::int64_t begin = block * RowFormat::SCALED, end = std::min(begin + RowFormat::SCALED, values);
                scales[block] = scale_byte(largest_of(row + begin, end - begin), 0.875f, 9);
                const float scale = e8m0(scales[block]);
                for (std::int64_t i = begin; i < end; ++i) to[i] = to_e4m3(row[i] / scale);
            }
            for (std::int64_t i = 0; i < format.rope; ++i) {
                const std::uint16_t turned = fine ? to_bf16(row[values + i]) : std::uint16_t{0};
                std::memcpy(to + values + 2 * i, &turned, sizeof turned);
            }
            return;
        }
        case Storing::FP4_KEYS: {
            hadamard_row(row, format.features);
            const bool fine = storable(row, format.features);
            std::uint8_t* scales = to + format.features / 2;
            for (std::int64_t block = 0; block < format.features / RowFormat::KEYS_SCALED; ++block) {
                const float* from = row + block * RowFormat::KEYS_SCALED;
                std::uint8_t* codes = to + block * RowFormat::KEYS_SCALED / 2;
                std::memset(codes, 0, RowFormat::KEYS_SCALED / 2);
                scales[block] = NO_SCALE;
                if (!fine) continue;
                scales[block] = scale_byte(largest_of(from, RowFormat::KEYS_SCALED), 0.75f, 3);
                const float scale = e8m0(scales[block]);
                for (std::int64_t i = 0; i < RowFormat::KEYS_SCALED; i += 2)
                    codes[i / 2] = static_cast<std::uint8_t>(to_e2m1(from[i] / scale) |
                                                             to_e2m1(from[i + 1] / scale) << 4);
            }
        }
    }
}

inline void widen_bf16(const std::uint8_t* from, std::int64_t count, float* to) {
    std::int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        Halves bits;
        std::memcpy(&bits, from + 2 * i, sizeof bits);
        store(to + i, bits_as_floats(widen(bits) << 16));
    }
    for (; i < count; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, from + 2 * i, sizeof bits);
        to[i] = wide(bits);
    }
}

// A byte's two values, the low nibble's first.
struct PairsOfE2M1 {
    float values[256][2];
    PairsOfE2M1() {
        for (int i = 0; i < 256; ++i) {
            values[i][0] = e2m1(static_cast<std::uint8_t>(i & 15));
            values[i][1] = e2m1(static_cast<std::uint8_t>(i >> 4));
        }
    }
};

inline void decode_row(const RowFormat& format, const std::uint8_t* from, float* to) {
    switch (format.storing) {
        case Storing::FLOAT32: std::memcpy(to, from, 4 * format.features); return;
        case Storing::BF16: widen_bf16(from, format.features, to); return;
        case Storing::FP8_ENTRIES: {
            const std::int64_t values = format.values();
            const std::uint8_t* scales = from + values + 2 * format.rope;
            for (std::int64_t begin = 0; begin < values; begin += RowFormat::SCALED) {
                const float scale = e8m0(scales[begin / RowFormat::SCALED]);
                const std::int64_t end = std::min(begin + RowFormat::SCALED, values);
                std::int64_t i = begin;
                for (; i + WIDTH <= end; i += WIDTH) store(to + i, e4m3_floats(widen_bytes(from + i)) * scale);
                for (; i < end; ++i) to[i] = e4m3(from[i]) * scale;
            }
            widen_bf16(from + values, format.rope, to + values);
            return;
        }
        case Storing::FP4_KEYS:
            static const PairsOfE2M1 pairs;
            for (std::int64_t begin = 0; begin < format.features; begin += RowFormat::KEYS_SCALED) {
                const float scale = e8m0(from[format.features / 2 + begin / RowFormat::KEYS_SCALED]);
                for (std::int64_t i = begin; i < begin + RowFormat::KEYS_SCALED; i += 2)
                    std::memcpy(to + i, pairs.values[from[i / 2]], sizeof pairs.values[0]);
                for (std::int64_t i = begin; i < begin + RowFormat::KEYS_SCALED; ++i) to[i] *= scale;
            }
    }
}

}  // namespace narrows::NARROWS_ISA
