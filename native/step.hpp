// What a forward step works with: its plan, the memory it needs, and the phases of a layer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "network.hpp"
#include "products.hpp"
#include "team.hpp"

namespace narrows {

constexpr std::int64_t TILE_ROWS = 16;  // of attention

// Memory in one piece, cut anew for every step and kept between them. Much of it is given back when many steps in a row
// have used little: what a prefill takes is not to be made anew after every decode step between two of them.
class Arena {
   public:
    // Calls plan twice: to count, and to hand out what was counted.
    template <typename Plan>
    void lay_out(const Plan& plan) {
        at_ = 0, base_ = nullptr;
        plan(*this);
        if (size_ > KEPT && at_ < size_ / 8) {
            ++small_steps_;
            most_ = std::max(most_, at_);
        } else {
            small_steps_ = 0;
            most_ = 0;
        }
        if (at_ > size_) {
            make(at_);
        } else if (small_steps_ == PATIENCE) {
            make(most_);
        }
        at_ = 0, base_ = memory_.get();
        plan(*this);
    }

    template <typename T>
    void take(T*& part, std::int64_t count) {
        part = base_ ? reinterpret_cast<T*>(base_ + at_) : nullptr;
        at_ += (static_cast<std::size_t>(count) * sizeof(T) + LINE - 1) / LINE * LINE;
    }

   private:
    void make(std::size_t size) {
        memory_.reset();
        size_ = 0, small_steps_ = 0, most_ = 0;
        memory_.reset(static_cast<char*>(std::aligned_alloc(LINE, size + LINE)));
        if (!memory_) throw std::bad_alloc();
        size_ = size;
    }

    static constexpr std::size_t LINE = 64, KEPT = std::size_t{64} << 20;
    static constexpr int PATIENCE = 1000;
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> memory_;
    std::size_t size_ = 0, at_ = 0;
    int small_steps_ = 0;   // that were the last ones,
    std::size_t most_ = 0;  // and the most that one of them used
    char* base_ = nullptr;
};

// A compressor window that a step completes.
struct CompletedWindow {
    std::int32_t segment;
    std::int64_t number;
};

// Some rows of a segment.
struct RowRange {
    std::int64_t begin, end, segment;
};

// All that follows from the segments alone.
struct StepPlan {
    const std::vector<StepSegment>& segments;
    std::int64_t rows = 0;
    std::vector<std::int64_t> position;       // [N]
    std::vector<std::int64_t> tiles;          // [T, 3], as attention takes them
    std::vector<RowRange> queries;            // rows that an index search takes together
    std::vector<CompletedWindow> windows[2];  // of CSA, of HCA
    std::vector<std::int64_t> visible[2];     // [N]
    std::int64_t most[2] = {};                // entries that a row may see
    std::vector<std::int64_t> window_first, window_last;  // [N], in the window's rows
    std::vector<std::int64_t> kept;           // [S]: past rows of the window that precede a segment's new ones
    std::vector<std::int64_t> window_base;    // [S]: where a segment begins in the window's rows
    std::int64_t window_rows = 0;

    StepPlan(const NetworkConfig& config, const std::vector<StepSegment>& segments, std::int64_t index_queries);
    static int of(Kind kind) { return kind == Kind::HCA; }
};

struct StepMemory {
    float *angles[2][2];  // sliding and compressed: cosines and sines [N, rope / 2]
    float *x, *normed, *mixes, *post, *comb;
    std::uint16_t *rounded;
    float *latent, *kv, *compressor, *index_compressor, *index_weights, *q, *index_q;
    std::uint16_t *latent_rounded, *attended_rounded, *grouped_rounded, *inner;
    std::uint8_t* new_window;
    const std::uint8_t** window_rows;
    const std::int32_t** tables;
    float *attended, *out, *router, *weights, *choices;
    std::int32_t *chosen, *order, *sources, *counts;
    std::int64_t* selected;
    IndexCandidate* candidates;
    std::int64_t* found;
    char** thread_memory;
};

// The phases of one layer, run by all threads of a team together.
class LayerStep {
   public:
    LayerStep(const BoundNetwork& network, const StepPlan& plan, const HistoryView& history,
              const std::int64_t* tokens, StepMemory& memory, std::int64_t splits)
        : network(network), c(network.config), plan(plan), history(history), tokens(tokens), m(memory),
          splits(splits) {}

    // Of every row; before the first layer.
    void angles(Team& team) const;
    void run(Team& team, const Layer& layer, const LayerHistory& past, float* streams,
             std::vector<Product>& expert_work) const;

   private:
    void read_streams(Team& team, const Hyper& hyper, const float* norm, const float* streams) const;
    void attend(Team& team, const Layer& layer, const LayerHistory& past) const;
    void finish_rows(Team& team, const Layer& layer, const LayerHistory& past) const;
    void compress(const Compressor& compressor, const float* inputs, const Ring& ring, const Blocks& pool,
                  const RowFormat& format, const CompletedWindow& window, char* memory) const;
    void attend_together(Team& team, const Attention& a, const float* const* angles) const;
    void finish_query(const float* const* angles, std::int64_t row, std::int64_t head) const;
    void finish_head(const float* const* angles, std::int64_t row, std::int64_t head) const;
    void search(Team& team, const LayerHistory& past) const;
    void keep(const Layer& layer, const LayerHistory& past) const;
    void mix_experts(Team& team, const Layer& layer, std::vector<Product>& work) const;
    bool searches(const Layer& layer) const {
        return layer.kind == Kind::CSA && plan.most[0] > c.topk;
    }

    const BoundNetwork& network;
    const NetworkConfig& c;
    const StepPlan& plan;
    const HistoryView& history;
    const std::int64_t* tokens;
    StepMemory& m;
    std::int64_t splits;  // parts into which an index search cuts the entries
};

// What a router says of every expert -> affinities, in place.
void to_affinities(float* router, std::int64_t experts);
// The experts of the highest affinity plus bias, in ascending order; of equals the lower; what is not a number counts as 0.
void choose_experts(const float* affinity, const float* bias, std::int64_t experts, std::int64_t count,
                    std::int32_t* chosen);

// Memory that each thread needs; phases allocate none, for what a thread would throw nobody could catch.
std::int64_t scratch_bytes(const NetworkConfig& config, const StepPlan& plan, const HistoryView& history,
                           std::int64_t splits);

}  // namespace narrows
