#include "inference_module.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "binding.hpp"
#include "prefetch.hpp"
#include "products.hpp"

using namespace nb::literals;

namespace narrows {
namespace {

using Bytes2 = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutIntegers2 = nb::ndarray<std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Row by row a position: past, past + 1, ... in each segment.
std::vector<StepSegment> segments_of(const Integers2& given, const Integers1& positions, std::int64_t rows) {
    is(given, {static_cast<std::int64_t>(given.shape(0)), 3}, "segments [S, 3]: rows, past, slot");
    std::vector<StepSegment> segments;
    std::int64_t first = 0;
    for (std::size_t s = 0; s < given.shape(0); ++s) {
        const std::int64_t* one = given.data() + 3 * s;
        require(0 < one[0] && one[0] <= rows - first, "the segments' rows are the step's");
        for (const StepSegment& other : segments) refuse_if(other.slot == one[2], "two segments of a step share a slot");
        segments.push_back({one[0], one[1], one[2], first});
        first += one[0];
    }
    require(first == rows, "the segments' rows are the step's");
    is(positions, {rows}, "positions [N]");
    for (const StepSegment& segment : segments)
        for (std::int64_t r = 0; r < segment.rows; ++r)  // unsigned: anything may be given
            refuse_if(static_cast<std::uint64_t>(positions.data()[segment.first + r]) !=
                          static_cast<std::uint64_t>(segment.past) + static_cast<std::uint64_t>(r),
                      "the positions are not those of the segments' rows: past, past + 1, ... in each segment");
    return segments;
}

// As many as are wanted, but no more than are ever made.
int threads_of(int threads) {
    if (resting()) throw std::runtime_error("the process is ending, and nothing can be computed any more");
    refuse_if(threads < 1, "threads must be at least 1");
    return std::min(threads, MOST_THREADS);
}

void step(Network& network, Integers1 tokens, Integers1 positions, Integers2 segments, const History& history,
          int threads, Out3 streams) {
    const std::int64_t rows = tokens.shape(0);
    is(tokens, {rows}, "tokens [N]");
    is(streams, {rows, STREAMS, network.bound.config.hidden}, "streams [N, 4, d]");
    const auto given = segments_of(segments, positions, rows);
    threads = threads_of(threads);
    nb::gil_scoped_release release;
    network.bound.step(tokens.data(), given, history.view, threads, streams.data());
}

void draft_step(Network& network, Integers1 tokens, Integers1 positions, Integers2 segments, const History& history,
                int threads, In3 streams, Out3 out) {
    const std::int64_t rows = tokens.shape(0);
    is(tokens, {rows}, "tokens [N]");
    is(streams, {rows, STREAMS, network.bound.config.hidden}, "streams [N, 4, d]");
    is(out, {rows, STREAMS, network.bound.config.hidden}, "out [N, 4, d]");
    const auto given = segments_of(segments, positions, rows);
    threads = threads_of(threads);
    nb::gil_scoped_release release;
    network.bound.draft_step(tokens.data(), given, history.view, threads, streams.data(), out.data());
}

// needed, absent, guessed, right, chosen (PrefetchCounts); all 0 without prefetching.
std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t> prefetched(const Network& network) {
    const PrefetchCounts found = network.bound.prefetch ? network.bound.prefetch->counts() : PrefetchCounts{};
    return {found.needed, found.absent, found.guessed, found.right, found.chosen};
}

void logits(Network& network, In3 streams, bool draft, int threads, Out2 out) {
    const std::int64_t rows = streams.shape(0);
    is(streams, {rows, STREAMS, network.bound.config.hidden}, "streams [R, 4, d]");
    is(out, {rows, network.bound.config.vocab}, "logits [R, vocab]");
    threads = threads_of(threads);
    nb::gil_scoped_release release;
    network.bound.logits(streams.data(), rows, draft, threads, out.data());
}

// x [N, columns] -> out [N, rows]; inputs rounded to BF16, or, for BF16 weights, `exact`.
void linear(In2 x, const Matrix& matrix, bool exact, int threads, Out2 out) {
    const Packed& w = matrix.packed;
    const std::int64_t rows = x.shape(0), padded = padded_columns(w.columns);
    is(x, {rows, w.columns}, "x [N, columns]");
    is(out, {rows, w.rows}, "out [N, rows]");
    refuse_if(exact && w.format != Format::BF16, "exact inputs need bf16 weights");
    threads = threads_of(threads);
    nb::gil_scoped_release release;
    std::vector<std::uint16_t> rounded(exact ? 0 : rows * padded);
    if (!exact)
        for (std::int64_t n = 0; n < rows; ++n) k().round_row(x.data() + n * w.columns, w.columns, rounded.data() + n * padded);
    Inputs inputs;
    inputs.apart = exact ? w.columns : padded;
    if (exact) {
        inputs.exact = x.data();
    } else {
        inputs.rounded = rounded.data();
    }
    const Product product{&w, inputs, rows, out.data(), w.rows};
    together(Turn(), threads, [&](Team& team) { products(team, &product, 1); });
}

void encode_rows(const FormatArguments& format, In2 rows, Bytes2 out) {
    const RowFormat f = row_format(format);
    const std::int64_t count = rows.shape(0);
    is(rows, {count, f.features}, "rows [N, features]");
    is(out, {count, f.bytes()}, "out [N, bytes]");
    aligned(out, "out [N, bytes]", sizeof(float));
    nb::gil_scoped_release release;
    std::vector<float> row(f.features);
    for (std::int64_t n = 0; n < count; ++n) {
        std::copy(rows.data() + n * f.features, rows.data() + (n + 1) * f.features, row.begin());
        k().encode_row(f, row.data(), out.data() + n * f.bytes());
    }
}

void decode_rows(const FormatArguments& format, Bytes2 stored, Out2 out) {
    const RowFormat f = row_format(format);
    const std::int64_t count = stored.shape(0);
    is(stored, {count, f.bytes()}, "stored [N, bytes]");
    is(out, {count, f.features}, "out [N, features]");
    nb::gil_scoped_release release;
    for (std::int64_t n = 0; n < count; ++n) k().decode_row(f, stored.data() + n * f.bytes(), out.data() + n * f.features);
}

void require_blocks(const Tables& tables, std::int64_t row, std::int64_t entries, std::int64_t block, std::int64_t blocks) {
    refuse_if(block < 1, "blocks must have at least one entry");
    const std::int64_t needed = entries / block + (entries % block != 0);
    require(needed <= static_cast<std::int64_t>(tables.shape(1)), "tables [S, n] as long as what is visible");
    refuse_if(entries > MOST_ENTRIES, "entries must be so few that 32 bits can number them");
    for (std::int64_t b = 0; b < needed; ++b) {
        const std::int32_t number = tables.data()[row * tables.shape(1) + b];
        refuse_if(number < 0 || number >= blocks, "tables must name blocks that there are");
    }
}

// One segment's rows: queries [N, h, c], rotated, weights [N, h], visible [N] ascending; keys [blocks, block, bytes],
// tables [1, n]; entries cut into `splits` parts -> out [N, k], ascending, -1 where there are fewer.
void index_topk(In3 queries, In2 weights, Integers1 visible, Bytes3 keys, Tables tables, const FormatArguments& format,
                std::int64_t splits, OutIntegers2 out) {
    const std::int64_t rows = queries.shape(0), heads = queries.shape(1), dim = queries.shape(2), topk = out.shape(1);
    require(0 < heads && heads <= 256 && dim > 0 && topk > 0, "queries [N, h, c] of 1 to 256 heads, k from 1");
    is(queries, {rows, heads, dim}, "queries [N, h, c]");
    is(weights, {rows, heads}, "weights [N, h]");
    is(visible, {rows}, "visible [N]");
    is(out, {rows, topk}, "out [N, k]");
    const RowFormat f = row_format(format);
    require(f.features == dim && static_cast<std::int64_t>(keys.shape(2)) == f.bytes(), "keys [blocks, block, bytes]");
    is(tables, {1, static_cast<std::int64_t>(tables.shape(1))}, "tables [1, n]");
    refuse_if(splits < 1 || splits > 64, "splits must be from 1 to 64");
    for (std::int64_t n = 0; n < rows; ++n)
        refuse_if(visible.data()[n] < (n == 0 ? 0 : visible.data()[n - 1]), "visible must be ascending, from 0 on");
    if (rows == 0) return;
    require_blocks(tables, 0, visible.data()[rows - 1], keys.shape(1), keys.shape(0));
    nb::gil_scoped_release release;
    const IndexSearch s{heads, dim, topk, f, keys.data(), static_cast<std::int64_t>(keys.shape(1))};
    const std::int64_t together = k().index_queries(s);
    std::vector<char> memory(k().index_memory(s) + 64);
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
    std::vector<IndexCandidate> candidates(together * topk);
    for (std::int64_t n = 0; n < rows; n += together) {
        const std::int64_t count = std::min(together, rows - n), end = visible.data()[n + count - 1];
        std::vector<std::vector<IndexCandidate>> all(count);
        for (std::int64_t part = 0; part < splits; ++part) {
            std::int64_t found[64];
            k().index_search(s, tables.data(), count, queries.data() + n * heads * dim, weights.data() + n * heads,
                             visible.data() + n, end * part / splits, end * (part + 1) / splits, aligned,
                             candidates.data(), found);
            for (std::int64_t q = 0; q < count; ++q)
                all[q].insert(all[q].end(), candidates.begin() + q * topk, candidates.begin() + q * topk + found[q]);
        }
        for (std::int64_t q = 0; q < count; ++q)
            best_entries(all[q].data(), static_cast<std::int64_t>(all[q].size()), topk, visible.data()[n + q],
                         out.data() + (n + q) * topk);
    }
}

// Attention as a history stores its rows: window [M, bytes], row n attends to first[n] .. last[n]; entries
// [blocks, block, bytes] by tables [S, n]; tiles [T, 3].
void attention_stored(In3 q, Bytes2 window, Integers1 first, Integers1 last, Integers2 tiles,
                      std::optional<Bytes3> entries, Tables tables, std::optional<Integers1> visible,
                      std::optional<Integers2> selected, In1 sink, const FormatArguments& format, Out3 out) {
    const std::int64_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2);
    const RowFormat f = row_format(format);
    require(heads > 0 && f.features == dim && f.storing != Storing::FP4_KEYS, "q [N, H, c], rows of c features");
    is(q, {rows, heads, dim}, "q [N, H, c]");
    is(window, {static_cast<std::int64_t>(window.shape(0)), f.bytes()}, "window [M, bytes]");
    is(first, {rows}, "first [N]");
    is(last, {rows}, "last [N]");
    is(tiles, {static_cast<std::int64_t>(tiles.shape(0)), 3}, "tiles [T, 3]");
    is(sink, {heads}, "sink [H]");
    is(out, {rows, heads, dim}, "out [N, H, c]");
    refuse_if(entries.has_value() != visible.has_value(), "entries and visible belong together");
    refuse_if(!entries && selected, "entries are selected, and there are none");
    Attention a{};
    a.heads = heads, a.dim = dim, a.q = q.data(), a.sink = sink.data();
    a.first = first.data(), a.last = last.data(), a.tiles = tiles.data(), a.format = &f;
    std::vector<const std::uint8_t*> window_rows;
    for (std::size_t i = 0; i < window.shape(0); ++i) window_rows.push_back(window.data() + i * f.bytes());
    aligned(tables, "tables [S, n]");
    std::vector<const std::int32_t*> block_tables;
    for (std::size_t s = 0; s < tables.shape(0); ++s) block_tables.push_back(tables.data() + s * tables.shape(1));
    a.window_rows = window_rows.data(), a.block_tables = block_tables.data();
    if (entries) {
        is(*visible, {rows}, "visible [N]");
        is(*entries, {static_cast<std::int64_t>(entries->shape(0)), static_cast<std::int64_t>(entries->shape(1)), f.bytes()},
           "entries [blocks, block, bytes]");
        a.visible = visible->data(), a.stored = entries->data(), a.block = entries->shape(1);
    }
    std::int64_t covered = 0;
    for (std::size_t t = 0; t < tiles.shape(0); ++t) {
        const std::int64_t begin = a.tiles[3 * t], size = a.tiles[3 * t + 1], segment = a.tiles[3 * t + 2];
        refuse_if(begin < 0 || size < 1 || size > rows || begin > rows - size, "tiles must be of rows that there are");
        covered += size;
        std::int64_t least = a.first[begin], most = a.last[begin];
        for (std::int64_t n = begin; n < begin + size; ++n) {
            require_window(a.first[n], a.last[n], window.shape(0));
            least = std::min(least, a.first[n]), most = std::max(most, a.last[n]);
            if (!visible) continue;
            require(0 <= segment && segment < static_cast<std::int64_t>(tables.shape(0)), "tables [S, n]");
            refuse_if(visible->data()[n] < 0, "visible must be from 0 on");
            require_blocks(tables, segment, visible->data()[n], entries->shape(1), entries->shape(0));
            a.entry_keys = std::max(a.entry_keys, visible->data()[n]);
        }
        a.window_keys = std::max(a.window_keys, most + 1 - least);
    }
    refuse_if(covered != rows, "tiles must have every row once");
    if (selected) {
        require(selected->shape(1) > 0, "selected [N, k]");
        is(*selected, {rows, static_cast<std::int64_t>(selected->shape(1))}, "selected [N, k]");
        a.selected = selected->data(), a.chosen = selected->shape(1);
    }
    nb::gil_scoped_release release;
    std::vector<char> memory(k().attention_memory(a, false) + 64);
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
    for (std::size_t t = 0; t < tiles.shape(0); ++t) k().attention(a, t, aligned, out.data());
}

// rows [tokens, 2 · width] of one window, or [2 · tokens, ...] with the previous one's first, or, with `overlap` but
// only `tokens` rows, of a first window -> out [dim].
void compress(In2 rows, In2 ape, bool overlap, Out1 out) {
    const std::int64_t tokens = ape.shape(0), dim = out.shape(0), width = overlap ? 2 * dim : dim;
    const std::int64_t given = rows.shape(0);
    require(tokens > 0 && dim > 0, "ape [tokens, width], out [dim]");
    is(out, {dim}, "out [dim]");
    is(ape, {tokens, width}, "ape [tokens, width]");
    is(rows, {given, 2 * width}, "rows [T, 2 · width]");
    require(given == tokens || (overlap && given == 2 * tokens), "rows of one window, or of two that overlap");
    std::vector<const float*> pointers;
    if (overlap && given == tokens) pointers.assign(tokens, nullptr);
    for (std::int64_t t = 0; t < given; ++t) pointers.push_back(rows.data() + t * 2 * width);
    k().compress_window(pointers.data(), tokens, dim, overlap, ape.data(), out.data());
}

// streams [N, 4, d] -> out [N, d], post [N, 4], comb [N, 16]
void hyper_pre(In3 streams, In2 fn, In1 base, In1 scale, float eps, float norm_eps, int iterations, Out2 out,
               Out2 post, Out2 comb) {
    constexpr std::int64_t mixes = 2 * STREAMS + STREAMS * STREAMS;
    const std::int64_t rows = streams.shape(0), d = streams.shape(2);
    is(streams, {rows, STREAMS, d}, "streams [N, 4, d]");
    is(fn, {mixes, STREAMS * d}, "fn [24, 4 d]");
    is(base, {mixes}, "base [24]");
    is(scale, {3}, "scale [3]");
    is(out, {rows, d}, "out [N, d]");
    is(post, {rows, STREAMS}, "post [N, 4]");
    is(comb, {rows, STREAMS * STREAMS}, "comb [N, 16]");
    require_iterations(iterations);
    nb::gil_scoped_release release;
    std::vector<float> mixed(rows * mixes);
    if (rows == 0) return;
    k().hyper_mixes(0, rows, d, mixes, 0, mixes, streams.data(), fn.data(), mixed.data());
    k().hyper_finish(0, rows, d, streams.data(), mixed.data(), base.data(), scale.data(), eps, norm_eps, iterations,
                     out.data(), post.data(), comb.data());
}

// logits [V] -> whether all are finite, the first of the largest, log Σ e^x.
std::tuple<bool, std::int64_t, double> summarize(In1 logits) {
    require(logits.shape(0) > 0, "logits [V], V from 1");
    is(logits, {static_cast<std::int64_t>(logits.shape(0))}, "logits [V]");
    const LogitsSummary found = k().summarize(logits.data(), logits.shape(0));
    return {found.finite, found.largest, found.log_sum};
}

}  // namespace

void define_inference(nb::module_& m) {
    nb::class_<Matrix>(m, "Matrix", "A packed weight (narrows.ops.packed), in memory that stays where it is.")
        .def(nb::init<const std::string&, std::int64_t, std::int64_t, nb::object, nb::object>(), "format"_a, "rows"_a,
             "columns"_a, "values"_a, "scales"_a)
        .def_prop_ro("rows", [](const Matrix& matrix) { return matrix.packed.rows; })
        .def_prop_ro("columns", [](const Matrix& matrix) { return matrix.packed.columns; });
    nb::class_<History>(m, "History", "A history's memory, as steps read and write it.")
        .def(nb::init<nb::list, const FormatArguments&, const FormatArguments&, nb::object>(), "layers"_a, "entries"_a,
             "keys"_a, "tables"_a);
    nb::class_<Network>(m, "Network", "A network's weights, bound once.")
        .def(nb::init<nb::dict, nb::dict, nb::dict, std::int64_t>(), "config"_a, "matrices"_a, "arrays"_a, "prefetch"_a)
        .def("prefetched", &prefetched)
        .def("step", &step, "tokens"_a.noconvert(), "positions"_a.noconvert(), "segments"_a.noconvert(), "history"_a,
             "threads"_a, "streams"_a.noconvert())
        .def("draft_step", &draft_step, "tokens"_a.noconvert(), "positions"_a.noconvert(), "segments"_a.noconvert(),
             "history"_a, "threads"_a, "streams"_a.noconvert(), "out"_a.noconvert())
        .def("logits", &logits, "streams"_a.noconvert(), "draft"_a, "threads"_a, "out"_a.noconvert());
    m.def(
        "rest",
        [] {
            nb::gil_scoped_release release;
            rest();
            // Who has just ended a step gets the time to take the interpreter's lock again.
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        },
        "Wait for the step under way, and let none begin after it: for the end of the process.");
    m.def("why_not", &why_not, "config"_a);
    m.def("linear", &linear, "x"_a.noconvert(), "matrix"_a, "exact"_a, "threads"_a, "out"_a.noconvert());
    m.def("encode_rows", &encode_rows, "format"_a, "rows"_a.noconvert(), "out"_a.noconvert());
    m.def("decode_rows", &decode_rows, "format"_a, "stored"_a.noconvert(), "out"_a.noconvert());
    m.def("index_topk", &index_topk, "queries"_a.noconvert(), "weights"_a.noconvert(), "visible"_a.noconvert(),
          "keys"_a.noconvert(), "tables"_a.noconvert(), "format"_a, "splits"_a, "out"_a.noconvert());
    m.def("attention_stored", &attention_stored, "q"_a.noconvert(), "window"_a.noconvert(), "first"_a.noconvert(),
          "last"_a.noconvert(), "tiles"_a.noconvert(), "entries"_a.noconvert().none(), "tables"_a.noconvert(),
          "visible"_a.noconvert().none(), "selected"_a.noconvert().none(), "sink"_a.noconvert(), "format"_a,
          "out"_a.noconvert());
    m.def("summarize", &summarize, "logits"_a.noconvert());
    m.def("compress", &compress, "rows"_a.noconvert(), "ape"_a.noconvert(), "overlap"_a, "out"_a.noconvert());
    m.def("hyper_pre", &hyper_pre, "streams"_a.noconvert(), "fn"_a.noconvert(), "base"_a.noconvert(),
          "scale"_a.noconvert(), "eps"_a, "norm_eps"_a, "iterations"_a, "out"_a.noconvert(), "post"_a.noconvert(),
          "comb"_a.noconvert());
}

}  // namespace narrows
