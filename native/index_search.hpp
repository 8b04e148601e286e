// The lightning indexer: scores Σ_h w_h · ReLU(q_h · key) of a few queries against a run of keys, of which each query
// keeps its best.
//
// Queries' heads lie over the lanes of vectors, keys are read where they are stored. Products are taken in BF16 where
// the instruction set has them, sums in float32; a score's bits depend on its query and its key alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.hpp"
#include "product.hpp"
#include "product_bf16.hpp"
#include "rows.hpp"

namespace narrows::NARROWS_ISA {

constexpr std::int64_t INDEX_LANES = 64;  // of queries' heads, at once
constexpr std::int64_t KEYS_AT_ONCE = 32;

// Heads of a query, filled up so that queries share vectors evenly.
inline std::int64_t padded_heads(std::int64_t heads) {
    if (heads <= 4) return 4;
    return heads <= 8 ? 8 : (heads + 15) / 16 * 16;
}

inline std::int64_t index_queries(const IndexSearch& s) {
    return std::max<std::int64_t>(1, INDEX_LANES / padded_heads(s.heads));
}

inline std::int64_t index_lanes(const IndexSearch& s, std::int64_t queries) {
    return (queries * padded_heads(s.heads) + 15) / 16 * 16;
}

inline std::int64_t index_kept(const IndexSearch& s) { return 2 * s.k + KEYS_AT_ONCE; }

struct IndexRoom {
    float *panel, *weights, *keys, *products, *scores;
    std::uint16_t *panel_pairs, *key_pairs;
    IndexCandidate* kept;
    std::int64_t bytes = 0;

    IndexRoom(const IndexSearch& s, char* memory) {
        const std::int64_t queries = index_queries(s), lanes = index_lanes(s, queries), dim = (s.dim + 1) / 2 * 2;
        const auto take = [&](auto*& part, std::int64_t count) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + bytes);
            bytes += (count * static_cast<std::int64_t>(sizeof *part) + 63) / 64 * 64;
        };
        take(panel, dim * lanes);
        take(weights, lanes);
        take(keys, (KEYS_AT_ONCE + TALLEST) * dim);
        take(products, KEYS_AT_ONCE * lanes);
        take(scores, queries * KEYS_AT_ONCE);
        take(panel_pairs, dim * lanes);
        take(key_pairs, KEYS_AT_ONCE * dim);
        take(kept, queries * index_kept(s));
    }
};

inline std::int64_t index_memory(const IndexSearch& s) { return IndexRoom(s, nullptr).bytes; }

// The better comes first: the higher score, of equal ones the lower entry. A type of this instruction set, so that no
// other shares what the library makes of it.
struct Better {
    bool operator()(const IndexCandidate& a, const IndexCandidate& b) const {
        return a.score > b.score || (a.score == b.score && a.entry < b.entry);
    }
};

// What one query has found so far: at most 2 k + some candidates, all above a bar that k others have passed.
struct Best {
    IndexCandidate* kept;
    std::int64_t k, room, count = 0;
    float bar = -std::numeric_limits<float>::infinity();

    void shrink() {
        if (count <= k) return;
        std::nth_element(kept, kept + k - 1, kept + count, Better{});
        count = k;
        bar = kept[k - 1].score;
    }

    // Entries come in ascending order, so one that only equals the bar is too late.
    void add(const float* scores, std::int64_t number, std::int64_t first) {
        std::int64_t i = 0;
#if defined(__AVX512F__)
        for (; i + 16 <= number; i += 16)  // mostly none of them passes
            for (unsigned mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), _mm512_set1_ps(bar), _CMP_GT_OQ); mask;
                 mask &= mask - 1) {
                const int place = __builtin_ctz(mask);
                kept[count++] = {scores[i + place], static_cast<std::int32_t>(first + i + place)};
            }
#endif
        for (; i < number; ++i)
            if (scores[i] > bar) kept[count++] = {scores[i], static_cast<std::int32_t>(first + i)};
        if (count > room - KEYS_AT_ONCE) shrink();
    }
};

#ifdef NARROWS_BF16_PRODUCTS

// A key's pairs of BF16 in their order, exactly; false for a scale that BF16 cannot take, or that is no number.
inline bool pairs_of_fp4(const RowFormat& format, const std::uint8_t* from, std::uint16_t* to) {
    const __m512i table = _mm512_load_si512(fp4_table);
    const std::uint8_t* scales = from + format.features / 2;
    for (std::int64_t block = 0; block < format.features / 32; ++block) {
        const int scale = scales[block];
        if (scale < 8 || scale > 248) return false;
        const __m512i codes =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + block * 16)));
        const __m512i found =
            _mm512_permutexvar_epi16(_mm512_or_si512(codes, _mm512_slli_epi32(codes, 12)), table);
        const __mmask32 some = _mm512_test_epi16_mask(found, _mm512_set1_epi16(0x7fff));
        _mm512_storeu_si512(to + block * 32, _mm512_mask_add_epi16(found, some, found, _mm512_set1_epi16(static_cast<short>((scale - 127) * 128))));
    }
    return true;
}

// Of `count` keys from here on, pairs in BF16, a row each `dim` apart.
inline const std::uint16_t* key_pairs(const IndexSearch& s, const std::uint8_t* keys, std::int64_t count,
                                      std::int64_t dim, const IndexRoom& room) {
    if (s.format.storing == Storing::BF16 && dim == s.dim) return reinterpret_cast<const std::uint16_t*>(keys);
    for (std::int64_t key = 0; key < count; ++key, keys += s.format.bytes()) {
        std::uint16_t* to = room.key_pairs + key * dim;
        if (s.format.storing == Storing::FP4_KEYS && pairs_of_fp4(s.format, keys, to)) continue;
        decode_row(s.format, keys, room.keys);
        round_row(room.keys, s.dim, to);
        if (dim > s.dim) to[s.dim] = 0;
    }
    return room.key_pairs;
}

// relu(products) · weights of four keys' vectors, summed within every 128 bits: [part][key].
inline __m512 parts_of_four(const __m512* products, __m512 weights) {
    const __m512 none = _mm512_setzero_ps();
    __m512 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_mul_ps(_mm512_max_ps(none, products[i]), weights);
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// parts[v][g] of KEYS keys, four a group: what parts_of_four gives of vector v.
template <int VECTORS, int KEYS>
inline void score_keys(const std::uint16_t* const* keys, std::int64_t dim, const std::uint16_t* panel,
                       std::int64_t lanes, const float* weights, __m512 (*parts)[4]) {
    __m512 products[VECTORS][KEYS];
    for (int v = 0; v < VECTORS; ++v)
        for (int i = 0; i < KEYS; ++i) products[v][i] = _mm512_setzero_ps();
    for (std::int64_t d = 0; d < dim; d += 2, panel += 2 * lanes) {
        __m512i queries[VECTORS];
        for (int v = 0; v < VECTORS; ++v) queries[v] = _mm512_load_si512(panel + v * 32);
        for (int i = 0; i < KEYS; ++i) {
            const __m512i key = pair(keys[i] + d);
            for (int v = 0; v < VECTORS; ++v) products[v][i] = add_pairs(products[v][i], queries[v], key);
        }
    }
    for (int v = 0; v < VECTORS; ++v)
        for (int g = 0; g < KEYS / 4; ++g)
            parts[v][g] = parts_of_four(products[v] + 4 * g, _mm512_load_ps(weights + v * 16));
}

inline void index_scores(const IndexSearch& s, std::int64_t queries, const std::uint8_t* stored, std::int64_t count,
                         const IndexRoom& room) {
    const std::int64_t heads = padded_heads(s.heads), lanes = index_lanes(s, queries), dim = (s.dim + 1) / 2 * 2;
    const std::uint16_t* keys = key_pairs(s, stored, count, dim, room);
    const std::int64_t vectors = lanes / 16;
    // Few vectors of queries leave registers for more keys, without which each sum would wait for its last.
    const std::int64_t together = vectors == 1 ? 16 : vectors == 2 ? 8 : 4;
    for (std::int64_t first = 0; first < count; first += together) {
        const std::uint16_t* rows[16];
        for (std::int64_t i = 0; i < together; ++i) rows[i] = keys + std::min(first + i, count - 1) * dim;
        __m128 total[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
        for (std::int64_t v = 0; v < vectors; v += 4) {
            const std::uint16_t* panel = room.panel_pairs + v * 32;
            const float* weights = room.weights + v * 16;
            __m512 parts[4][4];
            if (together == 16) {
                score_keys<1, 16>(rows, dim, panel, lanes, weights, parts);
            } else if (together == 8) {
                score_keys<2, 8>(rows, dim, panel, lanes, weights, parts);
            } else {
                switch (vectors - v) {
                    case 1: score_keys<1, 4>(rows, dim, panel, lanes, weights, parts); break;
                    case 2: score_keys<2, 4>(rows, dim, panel, lanes, weights, parts); break;
                    case 3: score_keys<3, 4>(rows, dim, panel, lanes, weights, parts); break;
                    default: score_keys<4, 4>(rows, dim, panel, lanes, weights, parts);
                }
            }
            for (std::int64_t i = v; i < std::min(v + 4, vectors); ++i)
                for (std::int64_t g = 0; g < together / 4; ++g) {
                    const __m512 part = parts[i - v][g];
                    const __m128 quarter[4] = {_mm512_extractf32x4_ps(part, 0), _mm512_extractf32x4_ps(part, 1),
                                               _mm512_extractf32x4_ps(part, 2), _mm512_extractf32x4_ps(part, 3)};
                    const auto give = [&](std::int64_t query, __m128 value) {
                        if (query < queries) _mm_storeu_ps(room.scores + query * KEYS_AT_ONCE + first + 4 * g, value);
                    };
                    if (heads == 4) {
                        for (int q = 0; q < 4; ++q) give(4 * i + q, quarter[q]);
                    } else if (heads == 8) {
                        give(2 * i, _mm_add_ps(quarter[0], quarter[1]));
                        give(2 * i + 1, _mm_add_ps(quarter[2], quarter[3]));
                    } else {
                        total[g] = _mm_add_ps(total[g], _mm_add_ps(_mm_add_ps(quarter[0], quarter[1]),
                                                                   _mm_add_ps(quarter[2], quarter[3])));
                        if ((i + 1) * 16 % heads == 0) {
                            give(i * 16 / heads, total[g]);
                            total[g] = _mm_setzero_ps();
                        }
                    }
                }
        }
    }
}

#else

inline void index_scores(const IndexSearch& s, std::int64_t queries, const std::uint8_t* stored, std::int64_t count,
                         const IndexRoom& room) {
    const std::int64_t heads = padded_heads(s.heads), lanes = index_lanes(s, queries), dim = (s.dim + 1) / 2 * 2;
    std::fill(room.keys, room.keys + (KEYS_AT_ONCE + TALLEST) * dim, 0.0f);
    for (std::int64_t key = 0; key < count; ++key) {
        decode_row(s.format, stored + key * s.format.bytes(), room.keys + key * dim);
        for (std::int64_t i = 0; i < s.dim; ++i) room.keys[key * dim + i] = wide(to_bf16(room.keys[key * dim + i]));
    }
    const Factors factors[] = {{room.keys, dim, 1, room.panel, lanes}};
    product(factors, count, lanes, s.dim,
            [&](std::int64_t key, std::int64_t lane, Vec value) { store(room.products + key * lanes + lane, value); });
    for (std::int64_t key = 0; key < count; ++key)
        for (std::int64_t query = 0; query < queries; ++query) {
            const float *products = room.products + key * lanes + query * heads, *weights = room.weights + query * heads;
            float total = 0;
            for (std::int64_t h = 0; h < heads; ++h) total += std::max(products[h], 0.0f) * weights[h];  // NaN stays
            room.scores[query * KEYS_AT_ONCE + key] = total;
        }
}

#endif

// The best of the entries from begin to end for each of up to index_queries() queries [Q, heads, dim], rotated, whose
// visible[q] lie below: found[q] candidates at out + q · k, in no order.
inline void index_search(const IndexSearch& s, const std::int32_t* table, std::int64_t queries, const float* query,
                         const float* weights, const std::int64_t* visible, std::int64_t begin, std::int64_t end,
                         char* memory, IndexCandidate* out, std::int64_t* found) {
    const IndexRoom room(s, memory);
    const std::int64_t heads = padded_heads(s.heads), lanes = index_lanes(s, queries), dim = (s.dim + 1) / 2 * 2;
    std::fill(room.panel, room.panel + dim * lanes, 0.0f);
    std::fill(room.weights, room.weights + lanes, 0.0f);
    for (std::int64_t q = 0; q < queries; ++q)
        for (std::int64_t h = 0; h < s.heads; ++h) {
            const std::int64_t lane = q * heads + h;
            room.weights[lane] = weights[q * s.heads + h];
            for (std::int64_t d = 0; d < s.dim; ++d)
                room.panel[d * lanes + lane] = wide(to_bf16(query[(q * s.heads + h) * s.dim + d]));
        }
    for (std::int64_t d = 0; d < dim; ++d)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
            room.panel_pairs[(d / 2 * lanes + lane) * 2 + d % 2] = to_bf16(room.panel[d * lanes + lane]);
    Best best[INDEX_LANES];
    for (std::int64_t q = 0; q < queries; ++q) best[q] = {room.kept + q * index_kept(s), s.k, index_kept(s)};
    const std::int64_t each = s.block;
    for (std::int64_t entry = begin; entry < end;) {
        const std::int64_t place = entry % each;
        const std::int64_t count = std::min({each - place, end - entry, KEYS_AT_ONCE});
        const std::uint8_t* keys =
            s.keys + (static_cast<std::int64_t>(table[entry / each]) * each + place) * s.format.bytes();
        index_scores(s, queries, keys, count, room);
        for (std::int64_t q = 0; q < queries; ++q)
            best[q].add(room.scores + q * KEYS_AT_ONCE, std::clamp<std::int64_t>(visible[q] - entry, 0, count), entry);
        entry += count;
    }
    for (std::int64_t q = 0; q < queries; ++q) {
        best[q].shrink();
        found[q] = best[q].count;
        std::copy(best[q].kept, best[q].kept + best[q].count, out + q * s.k);
    }
}

}  // namespace narrows::NARROWS_ISA
