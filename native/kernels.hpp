// What is computed for a run of rows, once for every instruction set. The PyTorch references in src/narrows/ops say
// what each of these means; all tensors are contiguous float32 unless said otherwise.
#pragma once

#include <cstdint>

#include "packed.hpp"
#include "stored.hpp"

namespace narrows {

constexpr int STREAMS = 4;  // hc_mult: other numbers are left to the references

// Of the results. Raise it with every change after which a kernel may give other bits for the same input: another order
// of a sum, another place where something is rounded, another approximation. Histories that are kept on disk were
// computed by one version, and no other goes on from them.
constexpr int VERSION = 1;

// What attention is called with: N rows of H heads and c channels in T tiles, which are consecutive rows of a segment.
// In a batch, window and entries are floats; a history's rows (`format`) become floats as they are read.
struct Attention {
    std::int64_t heads, dim;
    const float *q, *sink;                 // [N, H, c], [H]
    const float* window;                   // [M, c]; row n attends to first[n] .. last[n]
    const std::int64_t *first, *last;      // [N]
    const std::int64_t* tiles;             // [T, 3]: first row, number of rows, segment
    const float* storage;                  // [E, c], or null: there are no entries
    const std::int64_t* table;             // [S, blocks]: the first row of every block of `block` entries
    const RowFormat* format;               // null in a batch, where what follows is unused
    const std::uint8_t* const* window_rows;      // [M], in the place of `window`
    const std::uint8_t* stored;                  // in the place of `storage`
    const std::int32_t* const* block_tables;     // [S], in the place of `table`: the numbers of a segment's blocks
    std::int64_t blocks, block;
    const std::int64_t* visible;           // [N]
    const std::int64_t* selected;          // [N, chosen], or null: all that are visible
    std::int64_t chosen;
    std::int64_t window_keys, entry_keys;  // of a tile, at most
};

// Keys in blocks of `block`, stored in a format, and how many of them the index heads of a query choose.
struct IndexSearch {
    std::int64_t heads, dim, k;
    RowFormat format;
    const std::uint8_t* keys;
    std::int64_t block;
};

struct IndexCandidate {
    float score;
    std::int32_t entry;
};

struct LogitsSummary {
    bool finite;
    std::int64_t largest;
    double log_sum;
};

struct Kernels {
    // streams [N, 4, d], fn [M, 4·d], base [4] -> out [N, d], mixes [N, M], inverse [N]
    void (*hyper_read)(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t mixes_count,
                       const float* streams, const float* fn, const float* base, float scale, float eps,
                       float norm_eps, float* out, float* mixes, float* inverse);
    // by_out [N, d], by_others [N, M - 4] -> by_streams [N, 4, d], scaled [N, M] (whose product with the streams is
    // fn's gradient), by_pre [N, 4]
    void (*hyper_read_gradient)(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t mixes_count,
                                const float* streams, const float* fn, const float* base, float scale, float eps,
                                const float* mixes, const float* inverse, const float* by_out,
                                const float* by_others, float* by_streams, float* scaled, float* by_pre);
    // logits [N, 4] -> result [N, 4]
    void (*hyper_strengths)(std::int64_t begin, std::int64_t end, const float* logits, float* result);
    // streams [N, 4, d], out [N, d], post [N, 4], comb [N, 4, 4] -> result [N, 4, d]
    void (*hyper_post)(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams, const float* out,
                       const float* post, const float* comb, float* result);
    void (*hyper_post_gradient)(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams,
                                const float* out, const float* post, const float* comb, const float* by_result,
                                float* by_streams, float* by_out, float* by_post, float* by_comb);
    // logits [N, 4, 4] -> result [N, 4, 4]
    void (*sinkhorn)(std::int64_t begin, std::int64_t end, int iterations, float eps, const float* logits,
                     float* result);
    void (*sinkhorn_gradient)(std::int64_t begin, std::int64_t end, int iterations, float eps, const float* logits,
                              const float* by_result, float* by_logits);
    // x [N, d], weight [d] or null -> result [N, d], inverse [N]
    void (*rms_norm)(std::int64_t begin, std::int64_t end, std::int64_t d, const float* x, const float* weight,
                     float eps, float* result, float* inverse);
    // by_weight [d] or null: what these rows add to it
    void (*rms_norm_gradient)(std::int64_t begin, std::int64_t end, std::int64_t d, const float* x,
                              const float* weight, const float* inverse, const float* by_result, float* by_x,
                              float* by_weight);
    // gate, up [N, width], rows `stride` apart -> result [N, width]
    void (*swiglu)(std::int64_t begin, std::int64_t end, std::int64_t width, const float* gate, const float* up,
                   std::int64_t stride, float limit, float* result);
    // -> by_gate, by_up [N, width], rows `by_stride` apart, and, where it is not null, the result anew
    void (*swiglu_gradient)(std::int64_t begin, std::int64_t end, std::int64_t width, const float* gate,
                            const float* up, std::int64_t stride, float limit, const float* by_result,
                            float* by_gate, float* by_up, std::int64_t by_stride, float* result);
    // logits [N, vocab], in place to the gradient of the summed loss; targets [N], negative where there is none;
    // losses [N]
    void (*cross_entropy)(std::int64_t begin, std::int64_t end, std::int64_t vocab, float* logits,
                          const std::int64_t* targets, float* losses);
    // Bytes that a thread needs to work in.
    std::int64_t (*attention_memory)(const Attention& a, bool gradient);
    // One tile -> its rows of out [N, H, c]
    void (*attention)(const Attention& a, std::int64_t tile, char* memory, float* out);
    // One tile that is a single block, in parts: open, the scores' parts, the weights, the sums' parts.
    std::int64_t attention_lanes;  // heads of a row that a block takes, at most
    bool (*attention_is_block)(const Attention& a, std::int64_t tile, std::int64_t heads);
    void (*attention_open)(const Attention& a, std::int64_t tile, std::int64_t head_begin, std::int64_t head_end,
                           char* memory);
    void (*attention_scores)(const Attention& a, char* memory, std::int64_t part, std::int64_t parts);
    void (*attention_weights)(const Attention& a, char* memory);
    void (*attention_sums)(const Attention& a, char* memory, std::int64_t part, std::int64_t parts, float* out);
    // -> its rows of by_q [N, H, c], what it adds to by_sink [H]; what it adds to its keys stays in the memory
    void (*attention_gradient)(const Attention& a, std::int64_t tile, char* memory, const float* by_out, float* by_q,
                               float* by_sink);
    // what stayed there is added to by_window [M, c] and by_entries [E, c]
    void (*attention_add)(const Attention& a, std::int64_t tile, char* memory, float* by_window, float* by_entries);
    // What a step of inference is made of; the headers say what each computes.
    void (*product_rounded)(const Packed& w, std::int64_t block, std::int64_t blocks, const std::uint16_t* const* x,
                            float* const* y, std::int64_t count);
    void (*product_exact)(const Packed& w, std::int64_t block, std::int64_t blocks, const float* const* x,
                          float* const* y, std::int64_t count);
    void (*round_row)(const float* from, std::int64_t count, std::uint16_t* to);
    void (*norm_row)(const float* x, const float* weight, float eps, std::int64_t d, float* to);
    void (*rotate_row)(float* x, const float* cosines, const float* sines, std::int64_t pairs, bool back);
    void (*angles_row)(std::int64_t position, const float* frequencies, std::int64_t pairs, float* cosines,
                       float* sines);
    void (*hadamard_row)(float* x, std::int64_t n);
    void (*encode_row)(const RowFormat& format, float* row, std::uint8_t* to);
    void (*decode_row)(const RowFormat& format, const std::uint8_t* from, float* to);
    std::int64_t (*index_queries)(const IndexSearch& s);
    std::int64_t (*index_memory)(const IndexSearch& s);
    void (*index_search)(const IndexSearch& s, const std::int32_t* table, std::int64_t queries, const float* query,
                         const float* weights, const std::int64_t* visible, std::int64_t begin, std::int64_t end,
                         char* memory, IndexCandidate* out, std::int64_t* found);
    void (*compress_window)(const float* const* rows, std::int64_t tokens, std::int64_t dim, bool overlap,
                            const float* ape, float* to);
    void (*hyper_mixes)(std::int64_t begin, std::int64_t end, std::int64_t d, std::int64_t count, std::int64_t from,
                        std::int64_t to, const float* streams, const float* fn, float* mixes);
    void (*hyper_finish)(std::int64_t begin, std::int64_t end, std::int64_t d, const float* streams,
                         const float* mixes, const float* base, const float* scale, float eps, float norm_eps,
                         int iterations, float* out, float* post, float* comb);
    void (*hyper_head_row)(const float* streams, const float* fn, const float* base, float scale, float eps,
                           float norm_eps, std::int64_t d, float* to);
    void (*weighted_sum)(const float* const* rows, const float* weights, std::int64_t count, const float* last,
                         std::int64_t d, float* to);
    LogitsSummary (*summarize)(const float* logits, std::int64_t count);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}

}  // namespace narrows
