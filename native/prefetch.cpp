#include "prefetch.hpp"

#include <algorithm>

#include "step.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace narrows {
namespace {

// One call reads no more than the device's read-ahead or its largest transfer, whatever it is asked for; neither is
// below this on the systems that we know.
constexpr std::int64_t PIECE = 128 << 10;
constexpr std::int64_t PAGES = 1024;  // looked at together

std::int64_t bytes(const Packed& matrix) { return matrix.value_bytes() + matrix.scale_bytes(); }

}  // namespace

Prefetch::Prefetch(const BoundNetwork& network, std::int64_t budget)
    : network_(network), budget_(budget), ahead_(network.layers.size()) {
    for (auto& layer : ahead_) layer.reserve(network.config.experts);  // threads that step must not allocate
}

void Prefetch::begin(const std::int64_t* tokens, std::int64_t rows) {
    tokens_ = tokens, rows_ = rows;
    affinities_.resize(rows * network_.config.experts);
    chosen_.resize(rows * network_.config.chosen);
    for (auto& layer : ahead_) layer.clear();
}

// -> the bytes that are not in memory; those are asked for.
std::int64_t Prefetch::ask(const std::uint8_t* from, std::int64_t count) {
#if defined(__unix__) || defined(__APPLE__)
    static const std::int64_t page = sysconf(_SC_PAGESIZE);
    if (count == 0) return 0;
    const auto first = reinterpret_cast<std::uintptr_t>(from) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(from) + count + page - 1) / page * page;
    const auto advise = [](std::uintptr_t begin, std::uintptr_t stop) {
        for (; begin < stop; begin += PIECE)
            posix_madvise(reinterpret_cast<void*>(begin), std::min<std::uintptr_t>(PIECE, stop - begin), POSIX_MADV_WILLNEED);
    };
    std::int64_t absent = 0;
#if defined(__linux__)
    for (std::uintptr_t at = first; at < end; at += PAGES * page) {
        unsigned char present[PAGES];
        const std::int64_t pages = std::min<std::int64_t>(PAGES, (end - at) / page);
        if (mincore(reinterpret_cast<void*>(at), pages * page, present) != 0) return absent;
        for (std::int64_t i = 0, stop; i < pages; i = stop) {
            const bool here = present[i] & 1;
            for (stop = i + 1; stop < pages && (present[stop] & 1) == here;) ++stop;
            if (!here) absent += (stop - i) * page;
            if (!here || !told_.load(std::memory_order_relaxed)) advise(at + i * page, at + stop * page);
        }
    }
    if (absent) told_.store(true, std::memory_order_relaxed);
#else
    advise(first, end);
#endif
    return absent;
#else
    (void)from, (void)count;
    return 0;
#endif
}

std::int64_t Prefetch::ask(const Packed& matrix) {
    return ask(matrix.values, matrix.value_bytes()) + ask(matrix.scales, matrix.scale_bytes());
}

// Of `count` experts the first halves, which are needed first, then the second ones, `half` behind.
void Prefetch::ask(Team& team, const Product* work, std::int64_t half, std::int64_t count) {
    team.each(3 * count, [&](std::int64_t i) {
        const Packed& matrix = i >= 2 * count ? *work[half + i - 2 * count].w : i % 2 ? *work[i / 2].also : *work[i / 2].w;
        needed_.fetch_add(bytes(matrix), std::memory_order_relaxed);
        absent_.fetch_add(ask(matrix), std::memory_order_relaxed);
    });
}

void Prefetch::ask_chosen(Team& team, std::size_t layer) {
    const std::vector<std::int32_t>& chosen = ahead_[layer];
    const std::int64_t count = static_cast<std::int64_t>(chosen.size());
    team.each(3 * count, [&](std::int64_t i) {
        const Expert& expert = network_.layers[layer].experts[chosen[i < 2 * count ? i / 2 : i - 2 * count]];
        ask(i >= 2 * count ? expert.w2 : i % 2 ? expert.w3 : expert.w1);
    });
}

// By one thread: the experts that `chosen_` names, as many as the budget allows.
void Prefetch::choose(std::size_t layer) {
    std::vector<std::int32_t>& to = ahead_[layer];
    std::sort(chosen_.begin(), chosen_.end());
    const auto end = std::unique(chosen_.begin(), chosen_.end());
    const Expert& one = network_.layers[layer].experts[0];
    const std::int64_t most = budget_ / (bytes(one.w1) + bytes(one.w2) + bytes(one.w3));
    to.assign(chosen_.begin(), chosen_.begin() + std::min<std::int64_t>(end - chosen_.begin(), most));
}

void Prefetch::guess(Team& team, std::size_t number, const float* normed) {
    const Layer& layer = network_.layers[number];
    const std::int64_t E = network_.config.experts, K = network_.config.chosen;
    if (layer.table) {
        if (team.index() == 0) {
            for (std::int64_t n = 0; n < rows_; ++n)
                std::copy(layer.table + tokens_[n] * K, layer.table + (tokens_[n] + 1) * K, chosen_.data() + n * K);
        }
    } else {
        const Inputs x{nullptr, normed, network_.config.hidden, nullptr};
        products(team, {{&layer.router, x, rows_, affinities_.data(), E}});
        team.each(rows_, [&](std::int64_t n) {
            to_affinities(affinities_.data() + n * E, E);
            choose_experts(affinities_.data() + n * E, layer.bias, E, K, chosen_.data() + n * K);
        });
    }
    if (team.index() == 0) choose(number);
    team.barrier();
    ask_chosen(team, number);
}

void Prefetch::known(Team& team) {
    std::int64_t asked = 0;
    for (std::size_t i = 0; i < network_.layers.size() && network_.layers[i].table && asked < budget_; ++i) {
        guess(team, i, nullptr);
        const Expert& one = network_.layers[i].experts[0];
        asked += static_cast<std::int64_t>(ahead_[i].size()) * (bytes(one.w1) + bytes(one.w2) + bytes(one.w3));
    }
}

void Prefetch::count_guesses(const Layer& layer, const Product* work, std::int64_t count) {
    const std::vector<std::int32_t>& ahead = ahead_[&layer - network_.layers.data()];
    guessed_ += static_cast<std::int64_t>(ahead.size()), picked_ += count;
    right_ += std::count_if(ahead.begin(), ahead.end(), [&](std::int32_t expert) {
        return std::any_of(work, work + count, [&](const Product& product) { return product.w == &layer.experts[expert].w1; });
    });
}

void Prefetch::experts(Team& team, const Layer& layer, const float* normed, const std::vector<Product>& work) {
    const std::int64_t half = static_cast<std::int64_t>(work.size()) / 2;
    const auto end_of = [&](std::int64_t begin) {  // of the experts that the budget allows together
        std::int64_t end = begin, together = 0;
        for (; end < half; ++end) {
            together += bytes(*work[end].w) + bytes(*work[end].also) + bytes(*work[half + end].w);
            if (end > begin && together > budget_) break;
        }
        return end;
    };
    const Layer* first = network_.layers.data();
    const bool within = &layer >= first && &layer < first + network_.layers.size();  // or it is the MTP block
    const std::size_t next = within ? &layer - first + 1 : network_.layers.size();
    if (within && !layer.table && team.index() == 0) count_guesses(layer, work.data(), half - 1);
    std::int64_t begin = 0, end = end_of(0);
    ask(team, work.data(), half, end);
    while (begin < half) {
        const std::int64_t then = end_of(end);
        if (end < half) {
            ask(team, work.data() + end, half, then - end);
        } else if (next < network_.layers.size()) {
            guess(team, next, normed);
        }
        products(team, work.data() + begin, end - begin);
        products(team, work.data() + half + begin, end - begin);
        begin = end, end = then;
    }
}

PrefetchCounts Prefetch::counts() const { return {needed_, absent_, guessed_, right_, picked_}; }

}  // namespace narrows
