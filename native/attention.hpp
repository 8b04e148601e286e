// Attention over window, entries and sink: a block of queries against all keys that one of its rows sees.
//
// A block's queries lie over the lanes of vectors, so that a query's softmax is taken lane by lane. All sums go over
// the keys in their order, window first, and what a row does not see adds exactly 0: its bits do not depend on which
// rows share its block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <type_traits>

#include "kernels.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

constexpr int VECTORS = 4;               // of queries in a block, at most
constexpr int LANES = VECTORS * WIDTH;   // queries in a block, at most
constexpr std::int64_t MOST_ROWS = 32;   // of a block: a bit each says which of them see a key
constexpr std::int64_t DENSE_UP_TO = 8;  // Of more entries than so many times the selection, few rows share a block.

inline std::int64_t whole_vectors(std::int64_t length) { return (length + WIDTH - 1) / WIDTH * WIDTH; }

// Where everything lies in the memory that a thread works in.
struct Room {
    std::int64_t width;                 // of a row of channels: whole vectors
    float *keys, *weights, *by_scores;  // [K, width], [K, LANES], [K, LANES]
    float *queries, *upper;             // [LANES, width]
    float *across, *upper_across;       // [c, LANES]: queries, scaled, and upper, over the lanes
    float *by_window, *by_entries;      // [tile's window keys, width], [tile's entries, width]
    std::int64_t *entry, *stored;       // [K]: of the keys that are entries, number and row of the storage
    std::uint32_t* seen;                // [K]: a bit for every row of the block that sees the key
    std::int64_t bytes = 0;

    Room(const Attention& a, bool gradient, char* memory) : width(whole_vectors(a.dim)) {
        const auto take = [&](auto*& part, std::int64_t count) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + bytes);
            bytes += (count * static_cast<std::int64_t>(sizeof *part) + 63) / 64 * 64;
        };
        const std::int64_t keys_read = a.window_keys + a.entry_keys + TALLEST;
        // Rows that share a block name an entry once each before their selections are merged.
        const std::int64_t named = a.window_keys + std::max<std::int64_t>(1, WIDTH / a.heads) * a.chosen;
        take(keys, keys_read * width);
        take(weights, keys_read * LANES);
        take(queries, LANES * width);
        take(across, a.dim * LANES);
        take(entry, std::max(keys_read, named));
        take(stored, keys_read);
        take(seen, keys_read);
        if (!gradient) return;
        take(by_scores, keys_read * LANES);
        take(upper, LANES * width);
        take(upper_across, a.dim * LANES);
        take(by_window, a.window_keys * width);
        take(by_entries, a.entry_keys * width);
    }
};

// Of the numbers from begin to end, which are not none.
inline std::int64_t least_of(const std::int64_t* numbers, std::int64_t begin, std::int64_t end) {
    std::int64_t found = numbers[begin];
    for (std::int64_t i = begin + 1; i < end; ++i) found = numbers[i] < found ? numbers[i] : found;
    return found;
}

inline std::int64_t most_of(const std::int64_t* numbers, std::int64_t begin, std::int64_t end) {
    std::int64_t found = numbers[begin];
    for (std::int64_t i = begin + 1; i < end; ++i) found = numbers[i] > found ? numbers[i] : found;
    return found;
}

// A type of this instruction set, so that no other shares what the library makes of it.
struct Ascending {
    bool operator()(std::int64_t a, std::int64_t b) const { return a < b; }
};

// What all rows of a tile have in common.
struct Tile {
    std::int64_t begin, end, segment, first, last, visible;

    Tile(const Attention& a, std::int64_t number) {
        begin = a.tiles[3 * number];
        end = begin + a.tiles[3 * number + 1];
        segment = a.tiles[3 * number + 2];
        first = least_of(a.first, begin, end);
        last = most_of(a.last, begin, end);
        visible = a.visible ? std::max<std::int64_t>(0, most_of(a.visible, begin, end)) : 0;
    }

    // Rows whose queries share a block.
    std::int64_t together(const Attention& a) const {
        return std::min(std::max<std::int64_t>(1, (sparse(a) ? WIDTH : LANES) / a.heads), MOST_ROWS);
    }

    bool sparse(const Attention& a) const { return a.selected && visible > DENSE_UP_TO * a.chosen; }

    std::int64_t stored(const Attention& a, std::int64_t entry) const {
        const std::int64_t block = entry < a.block ? 0 : entry / a.block;
        if (a.format) return a.block_tables[segment][block] * a.block + (entry - block * a.block);
        return a.table[segment * a.blocks + block] + (entry - block * a.block);
    }
};

// Consecutive rows of a tile and some of their heads; and the keys that one of the rows sees.
struct Block {
    std::int64_t begin, end, head, heads;
    std::int64_t window, window_keys, keys = 0;
    std::uint32_t every;

    Block(const Attention& a, const Tile& tile, const Room& room, std::int64_t begin, std::int64_t end,
          std::int64_t head, std::int64_t heads)
        : begin(begin), end(end), head(head), heads(heads) {
        every = static_cast<std::uint32_t>((std::uint64_t{1} << (end - begin)) - 1);
        window = least_of(a.first, begin, end);
        window_keys = std::max<std::int64_t>(0, most_of(a.last, begin, end) + 1 - window);
        keys = window_keys;
        find_window(a, room);
        if (a.visible) find_entries(a, tile, room);
    }

    std::int64_t queries() const { return (end - begin) * heads; }
    std::int64_t row(std::int64_t query) const { return begin + query / heads; }
    // Where a query stands among all [N, H].
    std::int64_t place(const Attention& a, std::int64_t query) const {
        return row(query) * a.heads + head + query % heads;
    }

    // Keys from one to another as floats, from where they are stored.
    void fetch(const Attention& a, const Room& room, std::int64_t from_key, std::int64_t to_key) const {
        for (std::int64_t key = from_key; key < to_key; ++key) {
            float* to = room.keys + key * room.width;
            if (a.format) {
                // Rows lie anywhere: their first lines would each be waited for.
                const std::int64_t ahead = std::min(key + 6, to_key - 1);
                const std::uint8_t* next = ahead < window_keys ? a.window_rows[window + ahead]
                                                               : a.stored + room.stored[ahead] * a.format->bytes();
                for (std::int64_t line = 0; line < a.format->bytes(); line += 64) __builtin_prefetch(next + line);
                decode_row(*a.format, key < window_keys ? a.window_rows[window + key]
                                                        : a.stored + room.stored[key] * a.format->bytes(), to);
                std::fill(to + a.dim, to + room.width, 0.0f);
                continue;
            }
            const float* from = key < window_keys ? a.window + (window + key) * a.dim
                                                  : a.storage + room.stored[key] * a.dim;
            std::int64_t i = 0;
            for (; i + WIDTH <= a.dim; i += WIDTH) store(to + i, load(from + i));
            if (i < a.dim) store(to + i, load_part(from + i, a.dim - i));
        }
    }

   private:
    void find_window(const Attention& a, const Room& room) {
        std::fill(room.seen, room.seen + window_keys, 0u);
        for (std::int64_t n = begin; n < end; ++n) {
            const std::uint32_t bit = 1u << (n - begin);
            for (std::int64_t key = a.first[n] - window; key <= a.last[n] - window; ++key) room.seen[key] |= bit;
        }
    }

    void find_entries(const Attention& a, const Tile& tile, const Room& room) {
        if (a.selected && tile.sparse(a)) {
            merge_selected(a, tile, room);
            return;
        }
        const std::int64_t visible =
            std::max<std::int64_t>(0, most_of(a.visible, begin, end));
        std::uint32_t* seen = room.seen + window_keys;
        std::fill(seen, seen + visible, 0u);
        for (std::int64_t n = begin; n < end; ++n) {
            const std::uint32_t bit = 1u << (n - begin);
            if (!a.selected) {
                for (std::int64_t entry = 0; entry < a.visible[n]; ++entry) seen[entry] |= bit;
            } else {
                for (const std::int64_t* entry = a.selected + n * a.chosen; entry < a.selected + (n + 1) * a.chosen;
                     ++entry)
                    if (*entry >= 0 && *entry < a.visible[n]) seen[*entry] |= bit;
            }
        }
        for (std::int64_t entry = 0; entry < visible; ++entry) {
            if (seen[entry]) add_entry(a, tile, room, entry, seen[entry]);
        }
    }

    // The rows' selections, few among many entries, in the order of the entries.
    void merge_selected(const Attention& a, const Tile& tile, const Room& room) {
        std::int64_t *found = room.entry + window_keys, count = 0;
        for (std::int64_t n = begin; n < end; ++n)
            for (const std::int64_t* entry = a.selected + n * a.chosen; entry < a.selected + (n + 1) * a.chosen; ++entry)
                if (*entry >= 0 && *entry < a.visible[n]) found[count++] = *entry * MOST_ROWS + (n - begin);
        if (!std::is_sorted(found, found + count, Ascending{}))  // as a single row's mostly is
            std::sort(found, found + count, Ascending{});
        for (std::int64_t i = 0; i < count;) {
            const std::int64_t entry = found[i] / MOST_ROWS;
            std::uint32_t seen = 0;
            for (; i < count && found[i] / MOST_ROWS == entry; ++i) seen |= 1u << found[i] % MOST_ROWS;
            add_entry(a, tile, room, entry, seen);
        }
    }

    void add_entry(const Attention& a, const Tile& tile, const Room& room, std::int64_t entry, std::uint32_t seen) {
        room.seen[keys] = seen;
        room.entry[keys] = entry;
        room.stored[keys] = tile.stored(a, entry);
        ++keys;
    }
};

// The block's rows of x [N, H, c], as they are and, times `scale`, over the lanes.
inline void take_queries(const Attention& a, const Block& block, const Room& room, const float* x, float scale,
                         float* rows, float* across) {
    const std::int64_t count = block.queries();
    for (std::int64_t query = 0; query < count; ++query) {
        const float* from = x + block.place(a, query) * a.dim;
        float* to = rows + query * room.width;
        std::int64_t i = 0;
        for (; i + WIDTH <= a.dim; i += WIDTH) store(to + i, load(from + i));
        if (i < a.dim) store(to + i, load_part(from + i, a.dim - i));
    }
    for (std::int64_t i = 0; i < a.dim; ++i) {
        float* to = across + i * LANES;
        for (std::int64_t query = 0; query < count; ++query) to[query] = rows[query * room.width + i] * scale;
        for (std::int64_t lane = count; lane < whole_vectors(count); ++lane) to[lane] = 0.0f;
    }
}

// products[key][lane] = key · across, for keys from one to another; up to TALLEST - 1 keys more are read.
inline void by_key(const Attention& a, const Block& block, const Room& room, const float* across,
                   std::int64_t from_key, std::int64_t to_key, float* products) {
    const Factors factors[] = {{room.keys + from_key * room.width, room.width, 1, across, LANES}};
    product(factors, to_key - from_key, whole_vectors(block.queries()), a.dim,
            [&](std::int64_t key, std::int64_t lane, Vec value) {
                store(products + (from_key + key) * LANES + lane, value);
            });
}

// to [N, H, c]: Σ_key weights[key][query] · key, times the query's factor; whole vectors of channels from one to another.
inline void over_keys(const Attention& a, const Block& block, const Room& room, const float* weights,
                      const float* factor, std::int64_t from_channel, std::int64_t to_channel, float* to) {
    const Factors factors[] = {{weights, 1, LANES, room.keys + from_channel, room.width}};
    product(factors, block.queries(), to_channel - from_channel, block.keys,
            [&](std::int64_t query, std::int64_t column, Vec value) {
                const std::int64_t i = from_channel + column;
                float* row = to + block.place(a, query) * a.dim;
                value *= factor[query];
                i + WIDTH <= a.dim ? store(row + i, value) : store_part(row + i, value, a.dim - i);
            });
}

// What a softmax leaves of a block: 1 / sum, and the sink's weight, of every lane.
struct Sums {
    float inverse[LANES], sink[LANES];
};

// scores [K, LANES] to e^(score - most of its lane), 0 where a row does not see a key.
template <int COUNT>
inline void exponentials(const Attention& a, const Block& block, const Room& room, Sums& sums) {
    Ints bits[COUNT];
    Vec sink[COUNT], top[COUNT], total[COUNT];
    for (int v = 0; v < COUNT; ++v)
        for (int lane = 0; lane < WIDTH; ++lane) {
            const std::int64_t query = std::min<std::int64_t>(v * WIDTH + lane, block.queries() - 1);
            bits[v][lane] = static_cast<std::int32_t>(1u << (query / block.heads));
            sink[v][lane] = a.sink[block.head + query % block.heads];
        }
    for (int v = 0; v < COUNT; ++v) top[v] = sink[v];
    for (std::int64_t key = 0; key < block.keys; ++key) {
        float* scores = room.weights + key * LANES;
        if (room.seen[key] == block.every) {
            for (int v = 0; v < COUNT; ++v) top[v] = most(top[v], load(scores + v * WIDTH));
        } else {
            const Ints seen = static_cast<std::int32_t>(room.seen[key]) - Ints{};
            for (int v = 0; v < COUNT; ++v) {
                const Vec score = (seen & bits[v]) != 0 ? load(scores + v * WIDTH) : all(-INFINITY);
                store(scores + v * WIDTH, score);
                top[v] = most(top[v], score);
            }
        }
    }
    // Below -87 lies what is blocked, and what no float32 sum would show.
    const auto size = [](Vec x) { return x < -87.0f ? Vec{} : exponential(x); };
    for (int v = 0; v < COUNT; ++v) total[v] = sink[v] = size(sink[v] - top[v]);
    for (std::int64_t key = 0; key < block.keys; ++key) {
        float* scores = room.weights + key * LANES;
        for (int v = 0; v < COUNT; ++v) {
            const Vec value = size(load(scores + v * WIDTH) - top[v]);
            store(scores + v * WIDTH, value);
            total[v] += value;
        }
    }
    for (int v = 0; v < COUNT; ++v) {
        const Vec inverse = 1.0f / total[v];
        store(sums.inverse + v * WIDTH, inverse);
        store(sums.sink + v * WIDTH, sink[v] * inverse);
    }
}

// weights to the softmax; by_scores, Σ upper · key, to the gradient of the scores, times `scale`. along[lane] becomes
// Σ_key weight · Σ upper · key.
template <int COUNT>
inline void by_softmax(const Block& block, const Room& room, const Sums& sums, float scale, float* along) {
    Vec total[COUNT] = {}, inverse[COUNT];
    for (std::int64_t key = 0; key < block.keys; ++key)
        for (int v = 0; v < COUNT; ++v)
            total[v] += load(room.weights + key * LANES + v * WIDTH) * load(room.by_scores + key * LANES + v * WIDTH);
    for (int v = 0; v < COUNT; ++v) {
        inverse[v] = load(sums.inverse + v * WIDTH);
        total[v] *= inverse[v];
        store(along + v * WIDTH, total[v]);
    }
    for (std::int64_t key = 0; key < block.keys; ++key)
        for (int v = 0; v < COUNT; ++v) {
            float* weight = room.weights + key * LANES + v * WIDTH;
            float* by = room.by_scores + key * LANES + v * WIDTH;
            const Vec value = load(weight) * inverse[v];
            store(weight, value);
            store(by, value * (load(by) - total[v]) * scale);
        }
}

// Calls function with the number of vectors that the block's queries fill, known to the compiler.
template <typename Function>
inline void with_vectors(const Block& block, const Function& function) {
    switch (whole_vectors(block.queries()) / WIDTH) {
        case 1: function(std::integral_constant<int, 1>{}); break;
        case 2: function(std::integral_constant<int, 2>{}); break;
        case 3: function(std::integral_constant<int, 3>{}); break;
        default: function(std::integral_constant<int, VECTORS>{});
    }
}

template <typename Function>
inline void for_blocks(const Attention& a, const Tile& tile, const Room& room, const Function& function) {
    const std::int64_t rows = tile.together(a);
    for (std::int64_t begin = tile.begin; begin < tile.end; begin += rows)
        for (std::int64_t head = 0; head < a.heads; head += LANES)
            function(Block(a, tile, room, begin, std::min(begin + rows, tile.end), head,
                           std::min<std::int64_t>(LANES, a.heads - head)));
}

inline void attention(const Attention& a, std::int64_t number, char* memory, float* out) {
    const Room room(a, false, memory);
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.dim));
    for_blocks(a, Tile(a, number), room, [&](const Block& block) {
        block.fetch(a, room, 0, block.keys);
        take_queries(a, block, room, a.q, scale, room.queries, room.across);
        by_key(a, block, room, room.across, 0, block.keys, room.weights);
        Sums sums;
        with_vectors(block, [&](auto count) { exponentials<count>(a, block, room, sums); });
        over_keys(a, block, room, room.weights, sums.inverse, 0, room.width, out);
    });
}

// The same for one block, in parts that threads share: open, then all parts of the scores, then the weights, then all
// parts of the sums. What passes between them lies at the beginning of the memory.
struct Opened {
    Room room;
    Block block;
    Sums sums;
};
constexpr std::int64_t OPENED = (sizeof(Opened) + 63) / 64 * 64;

inline std::int64_t attention_memory(const Attention& a, bool gradient) {
    return OPENED + Room(a, gradient, nullptr).bytes;
}

inline bool attention_is_block(const Attention& a, std::int64_t number, std::int64_t heads) {
    const Tile tile(a, number);
    return heads <= LANES && tile.end - tile.begin <= tile.together(a);
}

inline void attention_open(const Attention& a, std::int64_t number, std::int64_t head_begin, std::int64_t head_end,
                           char* memory) {
    const Tile tile(a, number);
    const Room room(a, false, memory + OPENED);
    Opened* opened =
        new (memory) Opened{room, Block(a, tile, room, tile.begin, tile.end, head_begin, head_end - head_begin), {}};
    take_queries(a, opened->block, room, a.q, 1.0f / std::sqrt(static_cast<float>(a.dim)), room.queries, room.across);
}

// Whole groups of `step`, so that nobody reads what another is writing.
inline std::int64_t share(std::int64_t length, std::int64_t step, std::int64_t part, std::int64_t parts) {
    const std::int64_t groups = (length + step - 1) / step;
    return std::min(length, groups * part / parts * step);
}

inline void attention_scores(const Attention& a, char* memory, std::int64_t part, std::int64_t parts) {
    const Opened& o = *reinterpret_cast<const Opened*>(memory);
    const std::int64_t begin = share(o.block.keys, TALLEST, part, parts),
                       end = share(o.block.keys, TALLEST, part + 1, parts);
    o.block.fetch(a, o.room, begin, end);
    by_key(a, o.block, o.room, o.room.across, begin, end, o.room.weights);
}

inline void attention_weights(const Attention& a, char* memory) {
    Opened& o = *reinterpret_cast<Opened*>(memory);
    with_vectors(o.block, [&](auto count) { exponentials<count>(a, o.block, o.room, o.sums); });
}

inline void attention_sums(const Attention& a, char* memory, std::int64_t part, std::int64_t parts, float* out) {
    const Opened& o = *reinterpret_cast<const Opened*>(memory);
    over_keys(a, o.block, o.room, o.room.weights, o.sums.inverse, share(o.room.width, WIDTH, part, parts),
              share(o.room.width, WIDTH, part + 1, parts), out);
}

inline void attention_gradient(const Attention& a, std::int64_t number, char* memory, const float* by_out,
                               float* by_q, float* by_sink) {
    const Tile tile(a, number);
    const Room room(a, true, memory);
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.dim));
    std::fill(room.by_window, room.by_window + std::max<std::int64_t>(0, tile.last + 1 - tile.first) * room.width,
              0.0f);
    std::fill(room.by_entries, room.by_entries + tile.visible * room.width, 0.0f);
    std::fill(by_sink, by_sink + a.heads, 0.0f);
    for_blocks(a, tile, room, [&](const Block& block) {
        block.fetch(a, room, 0, block.keys);
        take_queries(a, block, room, a.q, scale, room.queries, room.across);
        take_queries(a, block, room, by_out, 1.0f, room.upper, room.upper_across);
        by_key(a, block, room, room.across, 0, block.keys, room.weights);
        by_key(a, block, room, room.upper_across, 0, block.keys, room.by_scores);
        Sums sums;
        float along[LANES], ones[LANES];
        with_vectors(block, [&](auto count) {
            exponentials<count>(a, block, room, sums);
            by_softmax<count>(block, room, sums, scale, along);
        });
        for (std::int64_t query = 0; query < block.queries(); ++query)
            by_sink[block.head + query % block.heads] -= sums.sink[query] * along[query];
        std::fill(ones, ones + LANES, 1.0f);
        over_keys(a, block, room, room.by_scores, ones, 0, room.width, by_q);
        const Factors factors[] = {{room.weights, LANES, 1, room.upper, room.width},
                                   {room.by_scores, LANES, 1, room.queries, room.width}};
        product(factors, block.keys, room.width, block.queries(), [&](std::int64_t key, std::int64_t i, Vec value) {
            float* to = key < block.window_keys ? room.by_window + (block.window - tile.first + key) * room.width + i
                                                : room.by_entries + room.entry[key] * room.width + i;
            store(to, load(to) + value);
        });
    });
}

inline void add_row(const float* from, std::int64_t count, float* to) {
    std::int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) store(to + i, load(to + i) + load(from + i));
    for (; i < count; ++i) to[i] += from[i];
}

inline void attention_add(const Attention& a, std::int64_t number, char* memory, float* by_window,
                          float* by_entries) {
    const Tile tile(a, number);
    const Room room(a, true, memory);
    for (std::int64_t key = tile.first; key <= tile.last; ++key)
        add_row(room.by_window + (key - tile.first) * room.width, a.dim, by_window + key * a.dim);
    for (std::int64_t entry = 0; entry < tile.visible; ++entry)
        add_row(room.by_entries + entry * room.width, a.dim, by_entries + tile.stored(a, entry) * a.dim);
}

}  // namespace narrows::NARROWS_ISA
