#include "attention_tiles.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <unordered_map>
#include <vector>

#include "threads.hpp"

namespace narrows {
namespace {

template <typename Array>
std::int64_t rows_of(const Array& array) {
    return array.shape(0);
}

// The arguments of both attention kernels as the kernels take them. Everything that a kernel uses to find a row is
// checked here.
Attention attention_of(const In3& q, const In2& window, const Integers1& first, const Integers1& last,
                       const Integers2& tiles, const std::optional<In2>& storage,
                       const std::optional<Integers2>& table, std::int64_t block,
                       const std::optional<Integers1>& visible, const std::optional<Integers2>& selected,
                       const In1& sink) {
    const std::int64_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2), count = tiles.shape(0);
    require(heads > 0 && dim > 0, "q [N, H, c] of at least one head and channel");
    is(q, {rows, heads, dim}, "q [N, H, c]");
    is(sink, {heads}, "sink [H]");
    is(window, {rows_of(window), dim}, "window [M, c]");
    is(first, {rows}, "first [N]");
    is(last, {rows}, "last [N]");
    is(tiles, {count, 3}, "tiles [T, 3]");
    refuse_if(storage.has_value() != table.has_value() || storage.has_value() != visible.has_value(),
              "storage, table and visible belong together");
    refuse_if(!storage && selected, "entries are selected, and there are none");
    Attention a{};
    a.heads = heads, a.dim = dim;
    a.q = q.data(), a.sink = sink.data(), a.window = window.data();
    a.first = first.data(), a.last = last.data(), a.tiles = tiles.data();
    if (storage) {
        is(*storage, {rows_of(*storage), dim}, "storage [E, c]");
        is(*table, {rows_of(*table), static_cast<std::int64_t>(table->shape(1))}, "table [S, n]");
        is(*visible, {rows}, "visible [N]");
        refuse_if(block < 1, "blocks must have at least one entry");
        a.storage = storage->data(), a.table = table->data(), a.visible = visible->data();
        a.blocks = table->shape(1), a.block = block;
    }
    if (selected) {
        require(selected->shape(1) > 0, "selected [N, k]");
        is(*selected, {rows, static_cast<std::int64_t>(selected->shape(1))}, "selected [N, k]");
        a.selected = selected->data(), a.chosen = selected->shape(1);
    }
    std::int64_t covered = 0;
    for (std::int64_t t = 0; t < count; ++t) {
        const std::int64_t begin = a.tiles[3 * t], size = a.tiles[3 * t + 1], segment = a.tiles[3 * t + 2];
        refuse_if(begin < 0 || size < 1 || size > rows || begin > rows - size, "tiles must be of rows that there are");
        covered += size;
        std::int64_t least = a.first[begin], most = a.last[begin], entries = 0;
        for (std::int64_t n = begin; n < begin + size; ++n) {
            require_window(a.first[n], a.last[n], rows_of(window));
            least = std::min(least, a.first[n]);
            most = std::max(most, a.last[n]);
            if (storage) entries = std::max(entries, a.visible[n]);
        }
        a.window_keys = std::max(a.window_keys, most + 1 - least);
        a.entry_keys = std::max(a.entry_keys, entries);
        if (!storage) continue;
        require(0 <= segment && segment < rows_of(*table), "table [S, n] of all segments");
        refuse_if(entries > 0 && (entries - 1) / block >= a.blocks, "visible entries must be in the table");
        for (std::int64_t b = 0; b < a.blocks && b * block < entries; ++b) {
            const std::int64_t row = a.table[segment * a.blocks + b], held = std::min(block, entries - b * block);
            refuse_if(row < 0 || row > rows_of(*storage) - held, "visible entries must be in the storage");
        }
    }
    refuse_if(covered != rows, "tiles must have every row once");
    return a;
}

// Memory that a thread keeps, at least so many bytes.
char* working_memory(std::int64_t bytes) {
    constexpr std::int64_t line = 64;
    thread_local std::vector<char> kept;
    if (static_cast<std::int64_t>(kept.size()) < bytes + line) kept.resize(bytes + line);
    return kept.data() + (line - reinterpret_cast<std::uintptr_t>(kept.data()) % line) % line;
}

}  // namespace

void attention(In3 q, In2 window, Integers1 first, Integers1 last, Integers2 tiles, std::optional<In2> storage,
               std::optional<Integers2> table, std::int64_t block, std::optional<Integers1> visible,
               std::optional<Integers2> selected, In1 sink, Out3 out) {
    const Attention a = attention_of(q, window, first, last, tiles, storage, table, block, visible, selected, sink);
    const std::int64_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2);
    is(out, {rows, heads, dim}, "out [N, H, c]");
    nb::gil_scoped_release release;
    const std::int64_t bytes = k().attention_memory(a, false);
    parallel(tiles.shape(0), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t tile = begin; tile < end; ++tile)
            k().attention(a, tile, working_memory(bytes), out.data());
    });
}

// Segments share no rows here: what a segment's tiles add to a key is added in the tiles' order, and a thread waits for
// the tiles before its own. They are taken so that it seldom must: every segment's first tile, every segment's second.
void attention_gradient(In3 q, In2 window, Integers1 first, Integers1 last, Integers2 tiles,
                        std::optional<In2> storage, std::optional<Integers2> table, std::int64_t block,
                        std::optional<Integers1> visible, std::optional<Integers2> selected, In1 sink, In3 by_out,
                        Out3 by_q, Out2 by_window, std::optional<Out2> by_storage, Out1 by_sink) {
    const Attention a = attention_of(q, window, first, last, tiles, storage, table, block, visible, selected, sink);
    const std::int64_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2), count = tiles.shape(0);
    is(by_out, {rows, heads, dim}, "by_out [N, H, c]");
    is(by_q, {rows, heads, dim}, "by_q [N, H, c]");
    is(by_window, {rows_of(window), dim}, "by_window [M, c]");
    refuse_if(by_storage.has_value() != storage.has_value(), "by_storage and storage belong together");
    if (storage) is(*by_storage, {rows_of(*storage), dim}, "by_storage [E, c]");
    is(by_sink, {heads}, "by_sink [H]");
    nb::gil_scoped_release release;
    std::fill(by_window.data(), by_window.data() + by_window.size(), 0.0f);
    if (by_storage) std::fill(by_storage->data(), by_storage->data() + by_storage->size(), 0.0f);
    std::vector<std::int64_t> before(count, -1), depth(count, 0), order(count);
    std::unordered_map<std::int64_t, std::int64_t> latest;
    for (std::int64_t tile = 0; tile < count; ++tile) {
        const auto [found, added] = latest.try_emplace(a.tiles[3 * tile + 2], tile);
        if (added) continue;
        before[tile] = found->second;
        depth[tile] = depth[found->second] + 1;
        found->second = tile;
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t left, std::int64_t right) { return depth[left] < depth[right]; });
    const std::int64_t bytes = k().attention_memory(a, true);
    std::vector<float> sinks(count * heads);
    std::vector<std::atomic<bool>> done(count);
    struct Turn {  // over even where something is thrown: others wait for it
        std::atomic<bool>& over;
        ~Turn() { over.store(true, std::memory_order_release); }
    };
    parallel(count, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t tile = order[i];
            const Turn turn{done[tile]};
            char* memory = working_memory(bytes);
            k().attention_gradient(a, tile, memory, by_out.data(), by_q.data(), sinks.data() + tile * heads);
            if (before[tile] >= 0)
                while (!done[before[tile]].load(std::memory_order_acquire)) std::this_thread::yield();
            k().attention_add(a, tile, memory, by_window.data(), by_storage ? by_storage->data() : nullptr);
        }
    });
    std::fill(by_sink.data(), by_sink.data() + heads, 0.0f);
    for (std::int64_t i = 0; i < count * heads; ++i) by_sink.data()[i % heads] += sinks[i];
}

}  // namespace narrows
