// A network's weights, bound once, and one forward step of it over packed rows (narrows.model.network is its reference).
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "team.hpp"

namespace narrows {

// Entries that a search can number.
constexpr std::int64_t MOST_ENTRIES = std::numeric_limits<std::int32_t>::max();

// The k best of `count` candidates, which are reordered, their entries ascending: to [k], -1 where there are fewer; where no
// more than k are visible, all of these, candidates or not.
void best_entries(IndexCandidate* all, std::int64_t count, std::int64_t k, std::int64_t visible, std::int64_t* to);

enum class Kind { SLIDING, CSA, HCA };

struct NetworkConfig {
    std::int64_t vocab, hidden, heads, dim, rope, q_rank, groups, o_rank, window, positions;
    std::int64_t index_heads, index_dim, topk, csa_ratio, hca_ratio;
    std::int64_t experts, chosen, width;
    float swiglu_limit, routed_scale, norm_eps, hyper_eps;
    int sinkhorn_iterations;

    std::int64_t ratio(Kind kind) const { return kind == Kind::CSA ? csa_ratio : hca_ratio; }
};

struct Hyper {
    const float *fn, *base, *scale;
};

struct Compressor {
    Packed wkv, wgate;
    const float *ape, *norm;
    std::int64_t dim, ratio;
    bool overlap;

    std::int64_t width() const { return overlap ? 2 * dim : dim; }
};

struct Expert {
    Packed w1, w2, w3;
};

struct Layer {
    Kind kind;
    Hyper hyper_attention, hyper_experts;
    const float *attention_norm, *q_norm, *kv_norm, *experts_norm, *sink;
    Packed wq_a, wq_b, wkv, wo_b;
    std::vector<Packed> wo_a;  // one a group
    Compressor compressor, index_compressor;
    Packed index_wq_b, index_weights;
    Packed router;
    const float* bias;            // [experts], or null in hash layers, which have
    const std::int32_t* table;    // [vocab, chosen]
    std::vector<Expert> experts;
    Expert shared;
};

struct Head {
    Hyper hyper;
    const float* norm;
};

struct Draft {  // the MTP block
    Layer block;
    Packed embedding_projection, streams_projection;
    const float *embedding_norm, *streams_norm;
    Head head;
};

// Rows by slot and position: the row of position p is p % capacity.
struct Ring {
    std::uint8_t* base = nullptr;
    std::int64_t capacity = 0, bytes = 0;

    std::uint8_t* row(std::int64_t slot, std::int64_t position) const {
        return base + (slot * capacity + position % capacity) * bytes;
    }
};

// Entries in blocks of `block`.
struct Blocks {
    std::uint8_t* base = nullptr;
    std::int64_t blocks = 0, block = 0, bytes = 0;

    std::uint8_t* row(const std::int32_t* table, std::int64_t entry) const {
        return base + (table[entry / block] * block + entry % block) * bytes;
    }
};

struct LayerHistory {
    Ring window, compressor, indexer;
    Blocks entries, keys;
};

struct HistoryView {
    std::vector<LayerHistory> layers;
    RowFormat entry_format, key_format;
    std::int64_t slots;
    const std::int32_t* tables;  // [slots, most]
    std::int64_t most;
};

struct StepSegment {
    std::int64_t rows, past, slot, first;
};


class Prefetch;
class Workspace;

class BoundNetwork {
   public:
    NetworkConfig config;
    const float *sliding_frequencies, *compressed_frequencies;  // [rope / 2]
    const std::uint16_t* embedding;                             // BF16 [vocab, hidden]
    std::vector<Layer> layers;
    Head head;
    Packed vocabulary;  // the head's matrix
    std::vector<Draft> drafts;
    std::unique_ptr<Prefetch> prefetch;  // null where the weights are in memory

    BoundNetwork();
    ~BoundNetwork();

    // tokens [N] -> streams [N, 4, d]. invalid_argument when these do not fit each other or the history.
    void step(const std::int64_t* tokens, const std::vector<StepSegment>& segments, const HistoryView& history,
              int threads, float* streams);
    // The MTP block: next_tokens [N], the streams of the same rows -> its streams.
    void draft_step(const std::int64_t* next_tokens, const std::vector<StepSegment>& segments,
                    const HistoryView& history, int threads, const float* streams, float* out);
    // streams [R, 4, d] -> logits [R, vocab], by the MTP block's head or the network's.
    void logits(const float* streams, std::int64_t rows, bool draft, int threads, float* out);


   private:
    void check(const std::int64_t* tokens, const std::vector<StepSegment>& segments, const HistoryView& history,
               const std::vector<const Layer*>& run) const;

    Workspace* workspace_;  // used by whose turn it is (team.hpp)
};

}  // namespace narrows
