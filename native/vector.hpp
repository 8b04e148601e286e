// Vectors of floats as wide as the instruction set has them, in the compiler's own terms.
//
// Every sum over a row is taken in one order: lane by lane, the lanes together, then what no vector fills. It depends
// on the row's length and the instruction set alone, so a row gives the same bits in any batch and on any thread.
#pragma once

#include <cstdint>
#include <cstring>

namespace narrows::NARROWS_ISA {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef std::int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef float Unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Unaligned*>(to) = value; }
// Up to WIDTH floats, so that what no vector fills is computed like the rest.
inline Vec load_part(const float* from, std::int64_t count) {
    float lanes[WIDTH] = {};
    std::memcpy(lanes, from, sizeof(float) * count);
    return load(lanes);
}

inline void store_part(float* to, Vec value, std::int64_t count) {
    float lanes[WIDTH];
    store(lanes, value);
    std::memcpy(to, lanes, sizeof(float) * count);
}

inline Vec all(float value) { return value - Vec{}; }
// The second where one of them is not a number.
inline Vec least(Vec a, Vec b) { return a < b ? a : b; }
inline Vec most(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec value) {
    float lanes[WIDTH];
    std::memcpy(lanes, &value, sizeof lanes);
    for (int width = WIDTH / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

// e^x to about 1.5 units in the last place; below -87 it is e^-87, above 88 e^88; what is not a number stays so.
inline Vec exponential(Vec x) {
    x = most(all(-87.0f), least(all(88.0f), x));
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
    const Vec n = shifted - 12582912.0f;
    Vec r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    Vec p = r * 1.98756915e-4f + 1.39819995e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    Bits bits;  // unsigned: what is not a number leaves any bits here
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    Vec scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

inline float dot(const float* a, const float* b, std::int64_t length) {
    Vec first{}, second{};
    std::int64_t i = 0;
    for (; i + 2 * WIDTH <= length; i += 2 * WIDTH) {
        first += load(a + i) * load(b + i);
        second += load(a + i + WIDTH) * load(b + i + WIDTH);
    }
    for (; i + WIDTH <= length; i += WIDTH) first += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < length; ++i) rest += a[i] * b[i];
    return sum(first + second) + rest;
}

}  // namespace narrows::NARROWS_ISA
