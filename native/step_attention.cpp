// Attention's half of a layer: projections, compressors, the indexer's search, the softmax, and the way back.
#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "arguments.hpp"
#include "kernels.hpp"

namespace narrows {
namespace {

constexpr std::int64_t MOST_SHARING = 16;  // rows that share a block where each selects few of many entries
constexpr std::int64_t FEW_HEADS = 16;     // whose queries one thread is done with before others would have come

IndexSearch search_of(const NetworkConfig& c, const HistoryView& history, const Blocks& keys) {
    return {c.index_heads, c.index_dim, c.topk, history.key_format, keys.base, keys.block};
}

// What attention needs to know beside its rows.
std::int64_t entries_read(const NetworkConfig& c, const StepPlan& plan, Kind kind) {
    if (kind == Kind::SLIDING) return 0;
    const std::int64_t most = plan.most[StepPlan::of(kind)];
    return kind == Kind::CSA && most > c.topk ? std::min(most, MOST_SHARING * c.topk) : most;
}

Attention attention_of(const NetworkConfig& c, const StepPlan& plan, const HistoryView& history, const StepMemory& m,
                       Kind kind) {
    Attention a{};
    a.heads = c.heads, a.dim = c.dim;
    a.q = m.q;
    a.first = plan.window_first.data(), a.last = plan.window_last.data(), a.tiles = plan.tiles.data();
    a.format = &history.entry_format;
    a.window_rows = m.window_rows;
    a.window_keys = c.window + TILE_ROWS;
    if (kind != Kind::SLIDING && plan.most[StepPlan::of(kind)] > 0) {
        a.visible = plan.visible[StepPlan::of(kind)].data();
        a.block_tables = m.tables;
        a.entry_keys = entries_read(c, plan, kind);
        if (kind == Kind::CSA && plan.most[0] > c.topk) a.selected = m.selected, a.chosen = c.topk;
    }
    return a;
}

}  // namespace

void best_entries(IndexCandidate* all, std::int64_t count, std::int64_t k, std::int64_t visible, std::int64_t* to) {
    if (visible <= k) {
        std::iota(to, to + visible, std::int64_t{0});
        std::fill(to + visible, to + k, std::int64_t{-1});
        return;
    }
    const std::int64_t kept = std::min(k, count);
    if (count > k)
        std::nth_element(all, all + k - 1, all + count, [](const auto& a, const auto& b) {
            return a.score > b.score || (a.score == b.score && a.entry < b.entry);
        });
    for (std::int64_t i = 0; i < kept; ++i) to[i] = all[i].entry;
    std::sort(to, to + kept);
    std::fill(to + kept, to + k, std::int64_t{-1});
}

std::int64_t scratch_bytes(const NetworkConfig& c, const StepPlan& plan, const HistoryView& history,
                           std::int64_t splits) {
    std::int64_t bytes = 0;
    StepMemory none{};
    for (const Kind kind : {Kind::SLIDING, Kind::CSA, Kind::HCA})
        bytes = std::max(bytes, k().attention_memory(attention_of(c, plan, history, none, kind), false));
    const IndexSearch search = search_of(c, history, {});
    bytes = std::max(bytes, k().index_memory(search) +
                                k().index_queries(search) * c.index_heads * (c.index_dim + 1) * 4 + 256);
    bytes = std::max(bytes, splits * c.topk * static_cast<std::int64_t>(sizeof(IndexCandidate)));
    const std::int64_t compressed =
        2 * std::max(c.csa_ratio, c.hca_ratio) * static_cast<std::int64_t>(sizeof(float*)) +
        (std::max(c.dim, c.index_dim) + 2 * c.rope) * 4 + 256;
    return std::max(bytes, compressed) + 256;
}

void LayerStep::compress(const Compressor& compressor, const float* inputs, const Ring& ring, const Blocks& pool,
                         const RowFormat& format, const CompletedWindow& window, char* memory) const {
    const StepSegment& segment = plan.segments[window.segment];
    const std::int64_t width = 2 * compressor.width(), ratio = compressor.ratio, pairs = c.rope / 2;
    const float** rows = reinterpret_cast<const float**>(memory);
    float* entry = reinterpret_cast<float*>(memory + 2 * ratio * static_cast<std::int64_t>(sizeof(float*)));
    float* angles = entry + (compressor.dim + 15) / 16 * 16;
    const auto row = [&](std::int64_t position) {
        return position >= segment.past ? inputs + (segment.first + position - segment.past) * width
                                        : reinterpret_cast<const float*>(ring.row(segment.slot, position));
    };
    std::int64_t count = 0;
    if (compressor.overlap)
        for (std::int64_t t = 0; t < ratio; ++t)
            rows[count++] = window.number ? row((window.number - 1) * ratio + t) : nullptr;
    for (std::int64_t t = 0; t < ratio; ++t) rows[count++] = row(window.number * ratio + t);
    k().compress_window(rows, ratio, compressor.dim, compressor.overlap, compressor.ape, entry);
    k().norm_row(entry, compressor.norm, c.norm_eps, compressor.dim, entry);
    k().angles_row(window.number * ratio, network.compressed_frequencies, pairs, angles, angles + pairs);
    k().rotate_row(entry + compressor.dim - c.rope, angles, angles + pairs, pairs, false);
    k().encode_row(format, entry, pool.row(m.tables[window.segment], window.number));
}

void LayerStep::finish_rows(Team& team, const Layer& layer, const LayerHistory& past) const {
    const int which = StepPlan::of(layer.kind);
    const bool compresses = layer.kind != Kind::SLIDING, indexes = layer.kind == Kind::CSA;
    const std::int64_t windows = compresses ? static_cast<std::int64_t>(plan.windows[which].size()) : 0;
    const std::int64_t pairs = c.rope / 2, bytes = history.entry_format.bytes(), padded = padded_columns(c.q_rank);
    const float* const* angles = m.angles[compresses];
    team.each(plan.rows + windows * (indexes ? 2 : 1), [&](std::int64_t i) {
        if (i >= plan.rows) {
            const std::int64_t number = i - plan.rows;
            char* memory = m.thread_memory[team.index()];
            if (number < windows) {
                compress(layer.compressor, m.compressor, past.compressor, past.entries, history.entry_format,
                         plan.windows[which][number], memory);
            } else {
                compress(layer.index_compressor, m.index_compressor, past.indexer, past.keys, history.key_format,
                         plan.windows[which][number - windows], memory);
            }
            return;
        }
        float *latent = m.latent + i * c.q_rank, *kv = m.kv + i * c.dim;
        k().norm_row(latent, layer.q_norm, c.norm_eps, c.q_rank, latent);
        k().round_row(latent, c.q_rank, m.latent_rounded + i * padded);
        k().norm_row(kv, layer.kv_norm, c.norm_eps, c.dim, kv);
        k().rotate_row(kv + c.dim - c.rope, angles[0] + i * pairs, angles[1] + i * pairs, pairs, false);
        k().encode_row(history.entry_format, kv, m.new_window + i * bytes);
    });
}

void LayerStep::search(Team& team, const LayerHistory& past) const {
    const IndexSearch s = search_of(c, history, past.keys);
    const std::int64_t together = k().index_queries(s), each = c.index_heads * c.index_dim, pairs = c.rope / 2;
    const float factor = 1.0f / std::sqrt(static_cast<float>(c.index_dim * c.index_heads));
    const bool turned = history.key_format.storing == Storing::FP4_KEYS;
    team.each(static_cast<std::int64_t>(plan.queries.size()) * splits, [&](std::int64_t i) {
        const RowRange& range = plan.queries[i / splits];
        if (plan.visible[0][range.end - 1] <= c.topk) return;  // its rows take all that they see
        const std::int64_t part = i % splits, count = range.end - range.begin;
        char* memory = m.thread_memory[team.index()];
        float* queries = reinterpret_cast<float*>(memory);
        float* weights = queries + together * each;
        char* rest = memory + (together * (each + c.index_heads) * 4 + 63) / 64 * 64;
        for (std::int64_t q = 0; q < count; ++q) {
            const std::int64_t n = range.begin + q;
            std::memcpy(queries + q * each, m.index_q + n * each, sizeof(float) * each);
            for (std::int64_t h = 0; h < c.index_heads; ++h) {
                float* head = queries + q * each + h * c.index_dim;
                k().rotate_row(head + c.index_dim - c.rope, m.angles[1][0] + n * pairs, m.angles[1][1] + n * pairs,
                               pairs, false);
                if (turned) k().hadamard_row(head, c.index_dim);
                weights[q * c.index_heads + h] = m.index_weights[n * c.index_heads + h] * factor;
            }
        }
        const std::int64_t end = plan.visible[0][range.end - 1];
        const std::int64_t share = ((end + splits - 1) / splits + past.keys.block - 1) / past.keys.block * past.keys.block;
        const std::int64_t begin = std::min(end, part * share);
        std::int64_t found[64];
        k().index_search(s, m.tables[range.segment], count, queries, weights, plan.visible[0].data() + range.begin,
                         begin, std::min(end, begin + share), rest,
                         m.candidates + (range.begin * splits + part * count) * c.topk, found);
        for (std::int64_t q = 0; q < count; ++q) m.found[range.begin * splits + part * count + q] = found[q];
    });
    // A row's candidates of all parts: its best, in the order of the entries.
    team.each(static_cast<std::int64_t>(plan.queries.size()), [&](std::int64_t i) {
        const RowRange& range = plan.queries[i];
        const std::int64_t count = range.end - range.begin, start = range.begin * splits;
        for (std::int64_t q = 0; q < count; ++q) {
            auto* all = reinterpret_cast<IndexCandidate*>(m.thread_memory[team.index()]);
            IndexCandidate* end = all;
            const std::int64_t visible = plan.visible[0][range.begin + q];
            for (std::int64_t part = 0; part < splits && visible > c.topk; ++part) {
                const std::int64_t place = start + part * count + q;
                end = std::copy_n(m.candidates + place * c.topk, m.found[place], end);
            }
            best_entries(all, end - all, c.topk, visible, m.selected + (range.begin + q) * c.topk);
        }
    });
}

void LayerStep::keep(const Layer& layer, const LayerHistory& past) const {
    const auto store = [&](const Ring& ring, const std::uint8_t* rows) {
        for (const StepSegment& segment : plan.segments)
            for (std::int64_t r = std::max<std::int64_t>(0, segment.rows - ring.capacity); r < segment.rows; ++r)
                std::memcpy(ring.row(segment.slot, segment.past + r), rows + (segment.first + r) * ring.bytes, ring.bytes);
    };
    store(past.window, m.new_window);
    if (layer.kind == Kind::SLIDING) return;
    store(past.compressor, reinterpret_cast<const std::uint8_t*>(m.compressor));
    if (layer.kind == Kind::CSA) store(past.indexer, reinterpret_cast<const std::uint8_t*>(m.index_compressor));
}

void LayerStep::finish_query(const float* const* angles, std::int64_t row, std::int64_t head) const {
    const std::int64_t pairs = c.rope / 2;
    float* q = m.q + (row * c.heads + head) * c.dim;
    k().norm_row(q, nullptr, c.norm_eps, c.dim, q);
    k().rotate_row(q + c.dim - c.rope, angles[0] + row * pairs, angles[1] + row * pairs, pairs, false);
}

void LayerStep::finish_head(const float* const* angles, std::int64_t row, std::int64_t head) const {
    const std::int64_t pairs = c.rope / 2, place = (row * c.heads + head) * c.dim;
    float* out = m.attended + place;
    k().rotate_row(out + c.dim - c.rope, angles[0] + row * pairs, angles[1] + row * pairs, pairs, true);
    k().round_row(out, c.dim, m.attended_rounded + place);
}

void LayerStep::attend_together(Team& team, const Attention& a, const float* const* angles) const {
    const std::int64_t rows = plan.tiles[1];
    char* memory = m.thread_memory[0];
    const bool few = c.heads <= FEW_HEADS;
    if (!few) team.each(rows * c.heads, [&](std::int64_t i) { finish_query(angles, i / c.heads, i % c.heads); });
    const std::int64_t group = k().attention_lanes;
    for (std::int64_t head = 0; head < c.heads; head += group) {
        if (team.index() == 0) {
            if (few && head == 0)
                for (std::int64_t i = 0; i < rows * c.heads; ++i) finish_query(angles, i / c.heads, i % c.heads);
            k().attention_open(a, 0, head, std::min(head + group, c.heads), memory);
        }
        team.barrier();
        k().attention_scores(a, memory, team.index(), team.count());
        team.barrier();
        if (team.index() == 0) k().attention_weights(a, memory);
        team.barrier();
        k().attention_sums(a, memory, team.index(), team.count(), m.attended);
        team.barrier();
    }
    team.each(rows * c.heads, [&](std::int64_t i) { finish_head(angles, i / c.heads, i % c.heads); });
}

void LayerStep::attend(Team& team, const Layer& layer, const LayerHistory& past) const {
    const std::int64_t N = plan.rows, d = c.hidden, padded = padded_columns(d);
    const bool compresses = layer.kind != Kind::SLIDING, indexes = layer.kind == Kind::CSA, searching = searches(layer);
    const Inputs x{m.rounded, nullptr, padded, nullptr}, exact{nullptr, m.normed, d, nullptr};
    Product work[8];
    std::int64_t count = 0;
    work[count++] = {&layer.wq_a, x, N, m.latent, c.q_rank};
    work[count++] = {&layer.wkv, x, N, m.kv, c.dim};
    const auto project = [&](const Compressor& compressor, float* to) {
        const std::int64_t width = compressor.width();
        work[count++] = {&compressor.wkv, exact, N, to, 2 * width};
        work[count++] = {&compressor.wgate, exact, N, to + width, 2 * width};
    };
    if (compresses) project(layer.compressor, m.compressor);
    if (indexes) project(layer.index_compressor, m.index_compressor);
    if (searching) work[count++] = {&layer.index_weights, x, N, m.index_weights, c.index_heads};
    products(team, work, count);

    finish_rows(team, layer, past);

    const Inputs latent{m.latent_rounded, nullptr, padded_columns(c.q_rank), nullptr};
    count = 0;
    work[count++] = {&layer.wq_b, latent, N, m.q, c.heads * c.dim};
    if (searching) work[count++] = {&layer.index_wq_b, latent, N, m.index_q, c.index_heads * c.index_dim};
    products(team, work, count);

    if (searching) search(team, past);

    // Where every row of the window is: its segment's kept rows, then its new ones.
    if (team.index() == 0) {
        const std::int64_t bytes = history.entry_format.bytes();
        for (std::size_t s = 0; s < plan.segments.size(); ++s) {
            const StepSegment& segment = plan.segments[s];
            const std::uint8_t** to = m.window_rows + plan.window_base[s];
            for (std::int64_t p = segment.past - plan.kept[s]; p < segment.past; ++p) *to++ = past.window.row(segment.slot, p);
            for (std::int64_t r = 0; r < segment.rows; ++r) *to++ = m.new_window + (segment.first + r) * bytes;
        }
    }
    team.barrier();
    Attention a = attention_of(c, plan, history, m, layer.kind);
    a.sink = layer.sink;
    a.stored = past.entries.base, a.block = past.entries.block;
    const float* const* angles = m.angles[compresses];
    const std::int64_t tiles = static_cast<std::int64_t>(plan.tiles.size()) / 3;
    const std::int64_t width = c.heads * c.dim, group = std::min(c.heads, k().attention_lanes);
    if (tiles == 1 && team.count() > 1 && k().attention_is_block(a, 0, group)) {
        attend_together(team, a, angles);
    } else {
        team.each(tiles, [&](std::int64_t tile) {
            const std::int64_t begin = plan.tiles[3 * tile], end = begin + plan.tiles[3 * tile + 1];
            for (std::int64_t n = begin; n < end; ++n)
                for (std::int64_t h = 0; h < c.heads; ++h) finish_query(angles, n, h);
            k().attention(a, tile, m.thread_memory[team.index()], m.attended);
            for (std::int64_t n = begin; n < end; ++n)
                for (std::int64_t h = 0; h < c.heads; ++h) finish_head(angles, n, h);
        });
    }

    if (team.index() == team.count() - 1) keep(layer, past);  // nobody reads the rings any more
    const std::int64_t each = width / c.groups, ranks = c.groups * c.o_rank;
    Product grouped[64];
    for (std::int64_t g = 0; g < c.groups; ++g) {
        grouped[g] = {&layer.wo_a[g], {m.attended_rounded + g * each, nullptr, width, nullptr}, N, nullptr, 0};
        grouped[g].rounded = m.grouped_rounded + g * c.o_rank;
        grouped[g].rounded_apart = padded_columns(ranks);
    }
    products(team, grouped, c.groups);
    products(team, {{&layer.wo_b, {m.grouped_rounded, nullptr, padded_columns(ranks), nullptr}, N, m.out, d}});
}

}  // namespace narrows
