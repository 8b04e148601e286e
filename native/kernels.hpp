// What is computed for a run of rows, once for every instruction set. The PyTorch references in src/narrows/ops say
// what each of these means; all tensors are contiguous float32 unless
// said otherwise.
#pragma once

#include <cstdint>

namespace narrows {

constexpr int STREAMS = 4;  // hc_mult: other numbers are left to the references

// What attention is called with: N rows of H heads and c channels in T tiles, which are consecutive rows of a segment.
struct Attention {
    std::int64_t heads, dim;
    const float *q, *sink;                 // [N, H, c], [H]
    const float* window;                   // [M, c]; row n attends to first[n] .. last[n]
    const std::int64_t *first, *last;      // [N]
    const std::int64_t* tiles;             // [T, 3]: first row, number of rows, segment
    const float* storage;                  // [E, c], or null: there are no entries
    const std::int64_t* table;             // [S, blocks]: the first row of every block of `block` entries
    std::int64_t blocks, block;
    const std::int64_t* visible;           // [N]
    const std::int64_t* selected;          // [N, chosen], or null: all that are visible
    std::int64_t chosen;
    std::int64_t window_keys, entry_keys;  // of a tile, at most
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
    // -> its rows of by_q [N, H, c], what it adds to by_sink [H]; what it adds to its keys stays in the memory
    void (*attention_gradient)(const Attention& a, std::int64_t tile, char* memory, const float* by_out, float* by_q,
                               float* by_sink);
    // what stayed there is added to by_window [M, c] and by_entries [E, c]
    void (*attention_add)(const Attention& a, std::int64_t tile, char* memory, float* by_window, float* by_entries);
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

}  // namespace narrows
