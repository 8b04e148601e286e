// The experts' half of a layer: routing, choices by expert, their products.
#include "step.hpp"

#include <algorithm>
#include <cmath>

#include "arguments.hpp"
#include "kernels.hpp"
#include "prefetch.hpp"

namespace narrows {

void to_affinities(float* router, std::int64_t experts) {
    for (std::int64_t e = 0; e < experts; ++e) {
        const float x = router[e];
        router[e] = std::sqrt(x > 20.0f ? x : std::log1p(std::exp(x)));
    }
}

void choose_experts(const float* affinity, const float* bias, std::int64_t experts, std::int64_t count,
                    std::int32_t* chosen) {
    const auto wanted = [&](std::int64_t e) {
        const float value = affinity[e] + bias[e];
        return std::isnan(value) ? 0.0f : value;
    };
    std::int64_t found = 0;
    for (std::int64_t e = 0; e < experts; ++e) {  // the best so far, best first
        const float value = wanted(e);
        std::int64_t place = found;
        while (place > 0 && wanted(chosen[place - 1]) < value) --place;
        if (place == count) continue;
        found = std::min(found + 1, count);
        for (std::int64_t i = found - 1; i > place; --i) chosen[i] = chosen[i - 1];
        chosen[place] = static_cast<std::int32_t>(e);
    }
    std::sort(chosen, chosen + count);
}

void LayerStep::mix_experts(Team& team, const Layer& layer, std::vector<Product>& work) const {
    const std::int64_t N = plan.rows, d = c.hidden, K = c.chosen, E = c.experts, padded = padded_columns(d);
    const std::int64_t inner = padded_columns(c.width);
    products(team, {{&layer.router, {nullptr, m.normed, d, nullptr}, N, m.router, E}});
    team.each(N, [&](std::int64_t n) {
        float *affinity = m.router + n * E, *weights = m.weights + n * K, total = 0;
        std::int32_t* chosen = m.chosen + n * K;
        to_affinities(affinity, E);
        if (layer.table) {
            std::copy(layer.table + tokens[n] * K, layer.table + (tokens[n] + 1) * K, chosen);
        } else {
            choose_experts(affinity, layer.bias, E, K, chosen);
        }
        for (std::int64_t i = 0; i < K; ++i) total += affinity[chosen[i]];
        for (std::int64_t i = 0; i < K; ++i) weights[i] = affinity[chosen[i]] / (total + 1e-20f) * c.routed_scale;
    });
    // Choices by expert: `order` names the choice n · K + i, `sources` its row. The shared expert's come last.
    if (team.index() == 0) {
        std::fill(m.counts, m.counts + E + 1, 0);
        for (std::int64_t i = 0; i < N * K; ++i) ++m.counts[m.chosen[i] + 1];
        for (std::int64_t e = 0; e < E; ++e) m.counts[e + 1] += m.counts[e];
        for (std::int64_t i = 0; i < N * K; ++i) {
            const std::int32_t place = m.counts[m.chosen[i]]++;
            m.order[place] = static_cast<std::int32_t>(i);
            m.sources[place] = static_cast<std::int32_t>(i / K);
        }
        for (std::int64_t n = 0; n < N; ++n) m.order[N * K + n] = static_cast<std::int32_t>(N * K + n);
        work.clear();
        const auto add = [&](const Expert& expert, std::int64_t begin, std::int64_t end, const std::int32_t* sources) {
            Product product{&expert.w1, {m.rounded, nullptr, padded, sources}, end - begin, nullptr, 0, m.order + begin};
            product.rounded = m.inner, product.rounded_apart = inner;
            product.also = &expert.w3, product.limit = c.swiglu_limit;
            work.push_back(product);
        };
        for (std::int64_t e = 0, begin = 0; e < E; begin = m.counts[e], ++e)
            if (m.counts[e] > begin) add(layer.experts[e], begin, m.counts[e], m.sources + begin);
        add(layer.shared, N * K, N * K + N, nullptr);
        const std::size_t first = work.size();
        for (std::size_t i = 0; i < first; ++i) {
            const Product& up = work[i];
            const Packed* down = nullptr;
            if (i + 1 == first) {
                down = &layer.shared.w2;
            } else {
                down = &layer.experts[m.chosen[up.rows[0]]].w2;
            }
            work.push_back({down, {m.inner, nullptr, inner, up.rows}, up.count, m.choices, d, up.rows});
        }
    }
    team.barrier();
    if (network.prefetch) return network.prefetch->experts(team, layer, m.normed, work);
    const std::int64_t half = static_cast<std::int64_t>(work.size()) / 2;
    products(team, work.data(), half);
    products(team, work.data() + half, half);
}

}  // namespace narrows
