#include "network.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "arguments.hpp"
#include "prefetch.hpp"
#include "step.hpp"

namespace narrows {

// What steps have in common: their memory, kept from one to the next.
class Workspace {
   public:
    Arena arena;
    std::vector<Product> expert_work;
};

BoundNetwork::BoundNetwork() : workspace_(new Workspace) {}
BoundNetwork::~BoundNetwork() { delete workspace_; }

namespace {

// With fewer groups of queries than this for each thread, entries are shared out as well.
constexpr std::int64_t GROUPS_EACH = 2;

void refuse(const std::string& what) { throw std::invalid_argument(what); }

void zero_if_padded(std::uint16_t* rows, std::int64_t count, std::int64_t columns) {
    if (padded_columns(columns) != columns) std::fill(rows, rows + count * padded_columns(columns), std::uint16_t{0});
}

struct LaidOut {
    StepMemory memory{};
    std::vector<char*> thread_memory;

    LaidOut(Workspace& workspace, const NetworkConfig& c, const StepPlan& plan, const HistoryView& history,
            std::int64_t splits, int threads) {
        const std::int64_t N = plan.rows, d = c.hidden, choices = N * (c.chosen + 1);
        const std::int64_t scratch = scratch_bytes(c, plan, history, splits);
        bool csa = plan.most[0] > c.topk;
        StepMemory& m = memory;
        thread_memory.resize(threads);
        workspace.arena.lay_out([&](Arena& arena) {
            for (auto& which : m.angles)
                for (float*& part : which) arena.take(part, N * c.rope / 2);
            arena.take(m.x, N * d);
            arena.take(m.normed, N * d);
            arena.take(m.mixes, N * (2 * STREAMS + STREAMS * STREAMS));
            arena.take(m.post, N * STREAMS);
            arena.take(m.comb, N * STREAMS * STREAMS);
            arena.take(m.rounded, N * padded_columns(d));
            arena.take(m.latent, N * c.q_rank);
            arena.take(m.kv, N * c.dim);
            arena.take(m.compressor, N * 4 * c.dim);
            arena.take(m.index_compressor, N * 4 * c.index_dim);
            arena.take(m.index_weights, N * c.index_heads);
            arena.take(m.q, N * c.heads * c.dim);
            arena.take(m.index_q, csa ? N * c.index_heads * c.index_dim : 0);
            arena.take(m.latent_rounded, N * padded_columns(c.q_rank));
            arena.take(m.attended_rounded, N * c.heads * c.dim);
            arena.take(m.grouped_rounded, N * padded_columns(c.groups * c.o_rank));
            arena.take(m.inner, choices * padded_columns(c.width));
            arena.take(m.new_window, N * history.entry_format.bytes());
            arena.take(m.window_rows, plan.window_rows);
            arena.take(m.tables, static_cast<std::int64_t>(plan.segments.size()));
            arena.take(m.attended, N * c.heads * c.dim);
            arena.take(m.out, N * d);
            arena.take(m.router, N * c.experts);
            arena.take(m.weights, N * c.chosen);
            arena.take(m.choices, choices * d);
            arena.take(m.chosen, N * c.chosen);
            arena.take(m.order, choices);
            arena.take(m.sources, choices);
            arena.take(m.counts, c.experts + 1);
            arena.take(m.selected, csa ? N * c.topk : 0);
            arena.take(m.candidates, csa ? N * splits * c.topk : 0);
            arena.take(m.found, csa ? N * splits : 0);
            for (char*& part : thread_memory) arena.take(part, scratch);
        });
        m.thread_memory = thread_memory.data();
        zero_if_padded(m.rounded, N, d);
        zero_if_padded(m.latent_rounded, N, c.q_rank);
        zero_if_padded(m.grouped_rounded, N, c.groups * c.o_rank);
        zero_if_padded(m.inner, choices, c.width);
        for (std::size_t s = 0; s < plan.segments.size(); ++s)
            m.tables[s] = history.tables + plan.segments[s].slot * history.most;
    }
};

std::int64_t splits_of(const StepPlan& plan, int threads) {
    return static_cast<std::int64_t>(plan.queries.size()) >= GROUPS_EACH * threads ? 1 : threads;
}

std::int64_t queries_together(const NetworkConfig& c) {
    return k().index_queries({c.index_heads, c.index_dim, c.topk, {}, nullptr, 1});
}

}  // namespace

void BoundNetwork::check(const std::int64_t* tokens, const std::vector<StepSegment>& segments,
                         const HistoryView& history, const std::vector<const Layer*>& run) const {
    if (history.entry_format.features != config.dim || history.entry_format.storing == Storing::FP4_KEYS)
        refuse("the history's rows are not the network's");
    if (segments.empty()) refuse("a step needs at least one segment");
    if (history.layers.size() != run.size()) refuse("the history has other layers than the network");
    std::int64_t rows = 0;
    for (const StepSegment& segment : segments) {
        if (segment.rows < 1) refuse("every segment needs at least one row");
        if (segment.past < 0 || segment.past > config.positions - segment.rows)
            refuse("a segment reaches beyond the positions that there are");
        if (segment.slot < 0 || segment.slot >= history.slots) refuse("a segment's slot is not one of the history's");
        rows += segment.rows;
    }
    for (std::int64_t n = 0; n < rows; ++n)
        if (tokens[n] < 0 || tokens[n] >= config.vocab) refuse("a token lies outside the vocabulary");
    for (std::size_t i = 0; i < run.size(); ++i) {
        const LayerHistory& past = history.layers[i];
        const auto ring = [&](const Ring& r, std::int64_t bytes, std::int64_t kept) {
            if (!r.base || r.bytes != bytes || r.capacity < kept) refuse("recent rows of the history do not fit");
        };
        ring(past.window, history.entry_format.bytes(), config.window - 1);
        const auto pool = [&](const Blocks& p, std::int64_t bytes, std::int64_t ratio) {
            if (!p.base || p.bytes != bytes || p.block < 1) refuse("entries of the history do not fit");
            for (const StepSegment& segment : segments) {
                const std::int64_t entries = (segment.past + segment.rows) / ratio;
                const std::int64_t blocks = entries / p.block + (entries % p.block != 0);
                if (entries > MOST_ENTRIES || blocks > history.most) refuse("a segment has more entries than its table has room for");
                const std::int32_t* table = history.tables + segment.slot * history.most;
                for (std::int64_t b = 0; b < blocks; ++b)
                    if (table[b] < 0 || table[b] >= p.blocks) refuse("a segment's block is not one of the history's");
            }
        };
        if (run[i]->kind == Kind::SLIDING) continue;
        const Compressor& compressor = run[i]->compressor;
        const std::int64_t kept = run[i]->kind == Kind::CSA ? 2 * compressor.ratio - 1 : compressor.ratio - 1;
        ring(past.compressor, 8 * compressor.width(), kept);
        pool(past.entries, history.entry_format.bytes(), compressor.ratio);
        if (run[i]->kind != Kind::CSA) continue;
        if (history.key_format.features != config.index_dim) refuse("the history's keys are not the network's");
        ring(past.indexer, 8 * run[i]->index_compressor.width(), kept);
        pool(past.keys, history.key_format.bytes(), compressor.ratio);
    }
}

void BoundNetwork::step(const std::int64_t* tokens, const std::vector<StepSegment>& segments,
                        const HistoryView& history, int threads, float* streams) {
    std::vector<const Layer*> run;
    for (const Layer& layer : layers) run.push_back(&layer);
    check(tokens, segments, history, run);
    const Turn turn;
    const StepPlan plan(config, segments, queries_together(config));
    const std::int64_t splits = splits_of(plan, threads), d = config.hidden;
    LaidOut laid_out(*workspace_, config, plan, history, splits, threads);
    const LayerStep layer_step(*this, plan, history, tokens, laid_out.memory, splits);
    workspace_->expert_work.reserve(2 * (config.experts + 1));
    if (prefetch) prefetch->begin(tokens, plan.rows);
    together(turn, threads, [&](Team& team) {
        if (prefetch) prefetch->known(team);
        layer_step.angles(team);
        const RowFormat row{Storing::BF16, d, 0};
        team.each(plan.rows, [&](std::int64_t n) {
            float* to = streams + n * STREAMS * d;
            k().decode_row(row, reinterpret_cast<const std::uint8_t*>(embedding + tokens[n] * d), to);
            for (int s = 1; s < STREAMS; ++s) std::memcpy(to + s * d, to, sizeof(float) * d);
        });
        for (std::size_t i = 0; i < run.size(); ++i)
            layer_step.run(team, *run[i], history.layers[i], streams, workspace_->expert_work);
    });
}

void BoundNetwork::draft_step(const std::int64_t* next_tokens, const std::vector<StepSegment>& segments,
                              const HistoryView& history, int threads, const float* streams, float* out) {
    if (drafts.empty()) refuse("this network has no MTP block");
    const Draft& draft = drafts[0];
    check(next_tokens, segments, history, {&draft.block});
    const Turn turn;
    const StepPlan plan(config, segments, queries_together(config));
    const std::int64_t splits = splits_of(plan, threads), d = config.hidden, padded = padded_columns(d), N = plan.rows;
    LaidOut laid_out(*workspace_, config, plan, history, splits, threads);
    const LayerStep layer_step(*this, plan, history, next_tokens, laid_out.memory, splits);
    workspace_->expert_work.reserve(2 * (config.experts + 1));
    std::vector<std::uint16_t> embedded(N * padded), normed(N * STREAMS * padded);
    std::vector<float> projected(N * d), row(threads * d);
    together(turn, threads, [&](Team& team) {
        layer_step.angles(team);
        const RowFormat format{Storing::BF16, d, 0};
        team.each(N * (STREAMS + 1), [&](std::int64_t i) {
            float* x = row.data() + team.index() * d;
            if (i < N) {
                k().decode_row(format, reinterpret_cast<const std::uint8_t*>(embedding + next_tokens[i] * d), x);
                k().norm_row(x, draft.embedding_norm, config.norm_eps, d, x);
                k().round_row(x, d, embedded.data() + i * padded);
            } else {
                k().norm_row(streams + (i - N) * d, draft.streams_norm, config.norm_eps, d, x);
                k().round_row(x, d, normed.data() + (i - N) * padded);
            }
        });
        products(team, {{&draft.embedding_projection, {embedded.data(), nullptr, padded, nullptr}, N, projected.data(), d},
                        {&draft.streams_projection, {normed.data(), nullptr, padded, nullptr}, N * STREAMS, out, d}});
        team.each(N * STREAMS, [&](std::int64_t i) {
            const float* added = projected.data() + i / STREAMS * d;
            for (std::int64_t j = 0; j < d; ++j) out[i * d + j] += added[j];
        });
        layer_step.run(team, draft.block, history.layers[0], out, workspace_->expert_work);
    });
}

void BoundNetwork::logits(const float* streams, std::int64_t rows, bool draft, int threads, float* out) {
    if (draft && drafts.empty()) refuse("this network has no MTP block");
    if (rows == 0) return;
    const Head& from = draft ? drafts[0].head : head;
    const std::int64_t d = config.hidden, padded = padded_columns(d);
    std::vector<std::uint16_t> rounded(rows * padded);
    std::vector<float> row(threads * d);
    together(Turn(), threads, [&](Team& team) {
        team.each(rows, [&](std::int64_t n) {
            float* x = row.data() + team.index() * d;
            k().hyper_head_row(streams + n * STREAMS * d, from.hyper.fn, from.hyper.base, from.hyper.scale[0],
                               config.hyper_eps, config.norm_eps, d, x);
            k().norm_row(x, from.norm, config.norm_eps, d, x);
            k().round_row(x, d, rounded.data() + n * padded);
        });
        products(team, {{&vocabulary, {rounded.data(), nullptr, padded, nullptr}, rows, out, config.vocab}});
    });
}

}  // namespace narrows
