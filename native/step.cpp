// A step's plan, and the run of a layer.
#include "step.hpp"

#include <algorithm>
#include <cmath>

#include "arguments.hpp"
#include "kernels.hpp"

namespace narrows {
namespace {

constexpr std::int64_t MIXES = 2 * STREAMS + STREAMS * STREAMS;
constexpr std::int64_t MIXED_TOGETHER = 4;   // rows that share what is read of hyper-connections' matrices

}  // namespace

StepPlan::StepPlan(const NetworkConfig& c, const std::vector<StepSegment>& given, std::int64_t index_queries)
    : segments(given) {
    for (std::size_t s = 0; s < given.size(); ++s) {
        const StepSegment& segment = given[s];
        const std::int64_t before = std::min(segment.past, c.window - 1), number = static_cast<std::int64_t>(s);
        kept.push_back(before);
        window_base.push_back(window_rows);
        for (std::int64_t r = 0; r < segment.rows; ++r) {
            const std::int64_t own = window_rows + before + r;
            position.push_back(segment.past + r);
            window_last.push_back(own);
            window_first.push_back(std::max(window_rows, own - c.window + 1));
            visible[0].push_back((segment.past + r + 1) / c.csa_ratio);
            visible[1].push_back((segment.past + r + 1) / c.hca_ratio);
        }
        window_rows += before + segment.rows;
        for (std::int64_t r = 0; r < segment.rows; r += TILE_ROWS)
            tiles.insert(tiles.end(), {segment.first + r, std::min(TILE_ROWS, segment.rows - r), number});
        for (std::int64_t r = 0; r < segment.rows; r += index_queries)
            queries.push_back({segment.first + r, segment.first + std::min(r + index_queries, segment.rows), number});
        for (const int which : {0, 1}) {
            const std::int64_t ratio = which ? c.hca_ratio : c.csa_ratio, end = segment.past + segment.rows;
            for (std::int64_t w = segment.past / ratio; w < end / ratio; ++w)
                windows[which].push_back({static_cast<std::int32_t>(s), w});
            most[which] = std::max(most[which], end / ratio);
        }
        rows += segment.rows;
    }
}

void LayerStep::angles(Team& team) const {
    const std::int64_t pairs = c.rope / 2;
    const float *sliding = network.sliding_frequencies, *compressed = network.compressed_frequencies;
    team.each(2 * plan.rows, [&](std::int64_t i) {
        const std::int64_t row = i / 2, which = i % 2;
        k().angles_row(plan.position[row], which ? compressed : sliding, pairs, m.angles[which][0] + row * pairs,
                       m.angles[which][1] + row * pairs);
    });
}

void LayerStep::read_streams(Team& team, const Hyper& hyper, const float* norm, const float* streams) const {
    const std::int64_t d = c.hidden, groups = (plan.rows + MIXED_TOGETHER - 1) / MIXED_TOGETHER;
    const std::int64_t parts = groups >= 2 * team.count() || team.count() == 1 ? 1 : MIXES / 4;
    team.each(groups * parts, [&](std::int64_t i) {
        const std::int64_t begin = i / parts * MIXED_TOGETHER, part = i % parts, each = MIXES / parts;
        k().hyper_mixes(begin, std::min(begin + MIXED_TOGETHER, plan.rows), d, MIXES, part * each, (part + 1) * each,
                        streams, hyper.fn, m.mixes);
    });
    const std::int64_t padded = padded_columns(d);
    team.each((plan.rows + 15) / 16, [&](std::int64_t i) {
        const std::int64_t begin = 16 * i, end = std::min(begin + 16, plan.rows);
        k().hyper_finish(begin, end, d, streams, m.mixes, hyper.base, hyper.scale, c.hyper_eps, c.norm_eps,
                         c.sinkhorn_iterations, m.x, m.post, m.comb);
        for (std::int64_t n = begin; n < end; ++n) {
            k().norm_row(m.x + n * d, norm, c.norm_eps, d, m.normed + n * d);
            k().round_row(m.normed + n * d, d, m.rounded + n * padded);
        }
    });
}

void LayerStep::run(Team& team, const Layer& layer, const LayerHistory& past, float* streams,
                    std::vector<Product>& expert_work) const {
    const std::int64_t d = c.hidden, K = c.chosen;
    read_streams(team, layer.hyper_attention, layer.attention_norm, streams);
    attend(team, layer, past);
    team.each(plan.rows, [&](std::int64_t n) {
        k().hyper_post(n, n + 1, d, streams, m.out, m.post, m.comb, streams);
    });
    read_streams(team, layer.hyper_experts, layer.experts_norm, streams);
    mix_experts(team, layer, expert_work);
    team.each(plan.rows, [&](std::int64_t n) {
        const float* rows[64];
        for (std::int64_t i = 0; i < K; ++i) rows[i] = m.choices + (n * K + i) * d;
        k().weighted_sum(rows, m.weights + n * K, K, m.choices + (plan.rows * K + n) * d, d, m.out + n * d);
        k().hyper_post(n, n + 1, d, streams, m.out, m.post, m.comb, streams);
    });
}

}  // namespace narrows
