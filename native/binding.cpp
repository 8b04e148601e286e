#include "binding.hpp"

#include <nanobind/stl/string.h>

#include <initializer_list>
#include <stdexcept>

#include "prefetch.hpp"

namespace narrows {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const std::int32_t, nb::c_contig, nb::device::cpu>;

template <typename Array>
Array array_of(nb::object from, const std::string& name) {
    Array array;
    if (!nb::try_cast<Array>(from, array, false))
        throw std::invalid_argument(name + " is no contiguous array on a CPU of the dtype and dimensions that it must have");
    aligned(array, name.c_str());
    return array;
}

// Looks weights up by their tensors' names, and keeps them alive.
class Binder {
   private:
    template <typename Array>
    auto data(const std::string& name, std::int64_t count) {
        if (!arrays_.contains(name.c_str())) throw std::invalid_argument("there is no array " + name);
        nb::object found = arrays_[name.c_str()];
        const Array array = array_of<Array>(found, name);
        if (static_cast<std::int64_t>(array.size()) != count)
            throw std::invalid_argument(name + " has " + std::to_string(array.size()) + " elements, not " +
                                        std::to_string(count));
        owners_.push_back(found);
        return array.data();
    }

   public:
    Binder(nb::dict matrices, nb::dict arrays, std::vector<nb::object>& owners)
        : matrices_(matrices), arrays_(arrays), owners_(owners) {}

    bool has(const std::string& name) const { return arrays_.contains(name.c_str()); }

    Packed matrix(const std::string& name, std::int64_t rows, std::int64_t columns) {
        if (!matrices_.contains(name.c_str())) throw std::invalid_argument("there is no matrix " + name);
        nb::object found = matrices_[name.c_str()];
        Matrix* m = nullptr;
        if (!nb::try_cast(found, m) || !m || m->packed.rows != rows || m->packed.columns != columns)
            throw std::invalid_argument(name + " is no Matrix of " + std::to_string(rows) + " rows and " +
                                        std::to_string(columns) + " columns");
        owners_.push_back(found);
        return m->packed;
    }

    Packed exact(const std::string& name, std::int64_t rows, std::int64_t columns) {
        const Packed found = matrix(name, rows, columns);
        if (found.format != Format::BF16) throw std::invalid_argument(name + " must be bf16");
        return found;
    }

    const float* floats(const std::string& name, std::int64_t count) {
        return data<Floats>(name, count);
    }
    const std::int32_t* integers(const std::string& name, std::int64_t count) {
        return data<Integers>(name, count);
    }
    const std::uint16_t* halves(const std::string& name, std::int64_t count) {
        return data<nb::ndarray<const std::uint16_t, nb::c_contig, nb::device::cpu>>(name, count);
    }

   private:
    nb::dict matrices_, arrays_;
    std::vector<nb::object>& owners_;
};

// The first of the kernels' limits that sizes go beyond; empty where they can be run.
std::string beyond_limits(const NetworkConfig& c, std::int64_t streams) {
    const auto named = [](const char* name, std::int64_t value) { return name + (" " + std::to_string(value)); };
    const std::int64_t wide = c.heads / c.groups * c.dim;
    if (streams != STREAMS) return named("hc_mult is", streams) + ", not 4";
    if (c.rope % 2 != 0) return named("qk_rope_head_dim", c.rope) + " is odd";
    if (c.rope > c.dim) return "head_dim is smaller than qk_rope_head_dim";
    if (c.rope > c.index_dim) return "index_head_dim is smaller than qk_rope_head_dim";
    if (c.groups > 64) return named("o_groups", c.groups) + " exceeds 64";
    if (c.heads % c.groups != 0) return named("o_groups", c.groups) + " does not divide num_attention_heads";
    if (c.o_rank % BLOCK_ROWS != 0) return named("o_lora_rank", c.o_rank) + " is no multiple of 16";
    if (wide % GROUP != 0) return named("a group of heads is", wide) + " wide, no multiple of 4";
    if (c.chosen > 64) return named("num_experts_per_tok", c.chosen) + " exceeds 64";
    if (c.chosen > c.experts) return named("num_experts_per_tok", c.chosen) + " exceeds n_routed_experts";
    if (c.sinkhorn_iterations > MOST_ITERATIONS)
        return named("hc_sinkhorn_iters", c.sinkhorn_iterations) + " exceeds 10,000";
    if (c.index_heads > 256) return named("index_n_heads", c.index_heads) + " exceeds 256";
    return {};
}

template <typename T>
T from_config(nb::dict config, const char* name) {
    if (!config.contains(name)) throw std::invalid_argument(std::string("the config lacks ") + name);
    return nb::cast<T>(config[name]);
}

NetworkConfig network_config(nb::dict from) {
    const auto size = [&](const char* name) {
        const auto value = from_config<std::int64_t>(from, name);
        // So little that no product of two and no bytes of them leave 64 bits; all positions are never multiplied.
        const std::int64_t most = std::int64_t{1} << (std::string(name) == "max_position_embeddings" ? 40 : 24);
        if (value < 1 || value > most)
            throw std::invalid_argument(std::string(name) + " " + std::to_string(value) + " is not from 1 to " +
                                        std::to_string(most));
        return value;
    };
    const auto number = [&](const char* name) { return static_cast<float>(from_config<double>(from, name)); };
    NetworkConfig c{};
    c.vocab = size("vocab_size"), c.hidden = size("hidden_size");
    c.heads = size("num_attention_heads"), c.dim = size("head_dim"), c.rope = size("qk_rope_head_dim");
    c.q_rank = size("q_lora_rank"), c.groups = size("o_groups"), c.o_rank = size("o_lora_rank");
    c.window = size("sliding_window"), c.positions = size("max_position_embeddings");
    c.index_heads = size("index_n_heads"), c.index_dim = size("index_head_dim"), c.topk = size("index_topk");
    c.csa_ratio = size("csa_ratio"), c.hca_ratio = size("hca_ratio");
    c.experts = size("n_routed_experts"), c.chosen = size("num_experts_per_tok"), c.width = size("moe_intermediate_size");
    c.swiglu_limit = number("swiglu_limit"), c.routed_scale = number("routed_scaling_factor");
    c.norm_eps = number("rms_norm_eps"), c.hyper_eps = number("hc_eps");
    c.sinkhorn_iterations = static_cast<int>(size("hc_sinkhorn_iters"));
    const std::string reason = beyond_limits(c, size("hc_mult"));
    if (!reason.empty()) throw std::invalid_argument(reason);
    return c;
}

Hyper hyper(Binder& bind, const std::string& name, std::int64_t mixes, std::int64_t scales, const NetworkConfig& c) {
    return {bind.floats(name + ".fn", mixes * STREAMS * c.hidden), bind.floats(name + ".base", mixes),
            bind.floats(name + ".scale", scales)};
}

Compressor compressor(Binder& bind, const std::string& name, std::int64_t dim, std::int64_t ratio, bool overlap,
                      const NetworkConfig& c) {
    Compressor found{};
    found.dim = dim, found.ratio = ratio, found.overlap = overlap;
    found.wkv = bind.exact(name + "wkv.weight", found.width(), c.hidden);
    found.wgate = bind.exact(name + "wgate.weight", found.width(), c.hidden);
    found.ape = bind.floats(name + "ape", ratio * found.width());
    found.norm = bind.floats(name + "norm.weight", dim);
    return found;
}

Layer layer(Binder& bind, const std::string& at, Kind kind, const NetworkConfig& c) {
    constexpr std::int64_t mixes = 2 * STREAMS + STREAMS * STREAMS;
    const std::string attn = at + "attn.", ffn = at + "ffn.";
    Layer l{};
    l.kind = kind;
    l.hyper_attention = hyper(bind, at + "hc_attn", mixes, 3, c);
    l.hyper_experts = hyper(bind, at + "hc_ffn", mixes, 3, c);
    l.attention_norm = bind.floats(at + "attn_norm.weight", c.hidden);
    l.experts_norm = bind.floats(at + "ffn_norm.weight", c.hidden);
    l.q_norm = bind.floats(attn + "q_norm.weight", c.q_rank);
    l.kv_norm = bind.floats(attn + "kv_norm.weight", c.dim);
    l.sink = bind.floats(attn + "attn_sink", c.heads);
    l.wq_a = bind.matrix(attn + "wq_a.weight", c.q_rank, c.hidden);
    l.wq_b = bind.matrix(attn + "wq_b.weight", c.heads * c.dim, c.q_rank);
    l.wkv = bind.matrix(attn + "wkv.weight", c.dim, c.hidden);
    l.wo_b = bind.matrix(attn + "wo_b.weight", c.hidden, c.groups * c.o_rank);
    const Packed wo_a = bind.matrix(attn + "wo_a.weight", c.groups * c.o_rank, c.heads / c.groups * c.dim);
    for (std::int64_t g = 0; g < c.groups; ++g)  // whole blocks of it
        l.wo_a.push_back(wo_a.part(g * c.o_rank / BLOCK_ROWS, c.o_rank));
    if (kind != Kind::SLIDING)
        l.compressor = compressor(bind, attn + "compressor.", c.dim, c.ratio(kind), kind == Kind::CSA, c);
    if (kind == Kind::CSA) {
        l.index_wq_b = bind.matrix(attn + "indexer.wq_b.weight", c.index_heads * c.index_dim, c.q_rank);
        l.index_weights = bind.matrix(attn + "indexer.weights_proj.weight", c.index_heads, c.hidden);
        l.index_compressor = compressor(bind, attn + "indexer.compressor.", c.index_dim, c.csa_ratio, true, c);
    }
    l.router = bind.exact(ffn + "gate.weight", c.experts, c.hidden);
    if (bind.has(ffn + "gate.tid2eid")) {
        l.table = bind.integers(ffn + "gate.tid2eid", c.vocab * c.chosen);
        for (std::int64_t i = 0; i < c.vocab * c.chosen; ++i)
            if (l.table[i] < 0 || l.table[i] >= c.experts)
                throw std::invalid_argument(ffn + "gate.tid2eid names an expert that there is not");
    } else {
        l.bias = bind.floats(ffn + "gate.bias", c.experts);
    }
    const auto expert = [&](const std::string& name, const char* end) {
        return Expert{bind.matrix(name + "w1" + end, c.width, c.hidden), bind.matrix(name + "w2" + end, c.hidden, c.width),
                      bind.matrix(name + "w3" + end, c.width, c.hidden)};
    };
    for (std::int64_t e = 0; e < c.experts; ++e)
        l.experts.push_back(expert(ffn + "experts." + std::to_string(e) + ".", ""));
    l.shared = expert(ffn + "shared_experts.", ".weight");
    return l;
}

}  // namespace

std::optional<std::string> why_not(nb::dict config) {
    try {
        network_config(config);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return std::nullopt;
}

RowFormat row_format(const FormatArguments& from) {
    const auto& [name, features, rope] = from;
    RowFormat format{};
    format.features = features, format.rope = rope;
    if (features < 1 || rope < 0 || rope > features || features > (1 << 24))
        throw std::invalid_argument("a row format of no features, or of more RoPE dims than features");
    if (name == "float32") {
        format.storing = Storing::FLOAT32;
    } else if (name == "bf16") {
        format.storing = Storing::BF16;
    } else if (name == "fp8_entries") {
        format.storing = Storing::FP8_ENTRIES;
    } else if (name == "fp4_keys") {
        format.storing = Storing::FP4_KEYS;
        if (features % RowFormat::KEYS_SCALED || features & (features - 1))
            throw std::invalid_argument("fp4_keys need a power of two from 32 on");
    } else {
        throw std::invalid_argument("there is no row format " + name);
    }
    return format;
}

Matrix::Matrix(const std::string& format, std::int64_t rows, std::int64_t columns, nb::object values,
               nb::object scales)
    : packed{}, values(values), scales(scales) {
    constexpr std::int64_t most = std::int64_t{1} << 48;
    if (rows < 1 || columns < 1 || rows > most / columns)
        throw std::invalid_argument("a matrix needs at least one row and one column, and at most 2^48 elements");
    packed.rows = rows, packed.columns = columns;
    if (format == "bf16") {
        packed.format = Format::BF16;
    } else if (format == "fp8") {
        packed.format = Format::FP8;
    } else if (format == "mxfp4") {
        packed.format = Format::MXFP4;
        require(columns % 32 == 0, "mxfp4 needs columns in 32s");
    } else {
        throw std::invalid_argument("there is no format " + format);
    }
    const auto value_bytes = array_of<Bytes1>(values, "values"), scale_bytes = array_of<Bytes1>(scales, "scales");
    require(static_cast<std::int64_t>(value_bytes.size()) == packed.value_bytes(), "values as packed.py lays them out");
    require(static_cast<std::int64_t>(scale_bytes.size()) == packed.scale_bytes(), "scales as packed.py lays them out");
    packed.values = value_bytes.data(), packed.scales = scale_bytes.data();
}

Network::Network(nb::dict config, nb::dict matrices, nb::dict arrays, std::int64_t prefetch) {
    Binder bind(matrices, arrays, owners);
    NetworkConfig& c = bound.config = network_config(config);
    bound.sliding_frequencies = bind.floats("sliding_frequencies", c.rope / 2);
    bound.compressed_frequencies = bind.floats("compressed_frequencies", c.rope / 2);
    bound.embedding = bind.halves("embed.weight", c.vocab * c.hidden);
    const auto kinds = from_config<nb::list>(config, "layer_types");
    std::int64_t number = 0;
    for (nb::handle name : kinds) {
        const auto kind = nb::cast<std::string>(name);
        if (kind != "sliding" && kind != "csa" && kind != "hca") throw std::invalid_argument("there is no layer kind " + kind);
        bound.layers.push_back(layer(bind, "layers." + std::to_string(number++) + ".",
                                     kind == "csa" ? Kind::CSA : kind == "hca" ? Kind::HCA : Kind::SLIDING, c));
    }
    bound.head = {hyper(bind, "hc_head", STREAMS, 1, c), bind.floats("norm.weight", c.hidden)};
    bound.vocabulary = bind.matrix("head.weight", c.vocab, c.hidden);
    if (bind.has("mtp.0.enorm.weight")) {
        Draft draft{layer(bind, "mtp.0.", Kind::SLIDING, c), {}, {}, nullptr, nullptr, {}};
        draft.embedding_projection = bind.matrix("mtp.0.e_proj.weight", c.hidden, c.hidden);
        draft.streams_projection = bind.matrix("mtp.0.h_proj.weight", c.hidden, c.hidden);
        draft.embedding_norm = bind.floats("mtp.0.enorm.weight", c.hidden);
        draft.streams_norm = bind.floats("mtp.0.hnorm.weight", c.hidden);
        draft.head = {hyper(bind, "mtp.0.hc_head", STREAMS, 1, c), bind.floats("mtp.0.norm.weight", c.hidden)};
        bound.drafts.push_back(draft);
    }
    refuse_if(prefetch < 0, "prefetch must be from 0 on");
    if (prefetch) bound.prefetch = std::make_unique<Prefetch>(bound, prefetch);
}

History::History(nb::list layers, const FormatArguments& entries, const FormatArguments& keys, nb::object tables) {
    view.entry_format = row_format(entries);
    view.key_format = row_format(keys);
    const auto table = array_of<Tables>(tables, "tables");
    view.slots = table.shape(0), view.most = table.shape(1), view.tables = table.data();
    owners.push_back(tables);
    for (nb::handle given : layers) {
        const auto parts = nb::cast<nb::tuple>(given);
        require(parts.size() == 5, "five parts a layer: window, compressor, indexer, entries, keys");
        const auto memory = [&](std::size_t i, const char* name) {
            nb::object part = parts[i];
            owners.push_back(part);
            const auto array = array_of<Bytes3>(part, name);
            aligned(array, name, sizeof(float));
            return array;
        };
        const auto ring = [&](std::size_t i, const char* name) -> Ring {
            if (parts[i].is_none()) return {};
            const auto array = memory(i, name);
            require(static_cast<std::int64_t>(array.shape(0)) == view.slots && array.shape(1) > 0 && array.shape(2) > 0,
                    "recent rows [slots, capacity, bytes]");
            return {array.data(), static_cast<std::int64_t>(array.shape(1)), static_cast<std::int64_t>(array.shape(2))};
        };
        const auto pool = [&](std::size_t i, const char* name) -> Blocks {
            if (parts[i].is_none()) return {};
            const auto array = memory(i, name);
            return {array.data(), static_cast<std::int64_t>(array.shape(0)), static_cast<std::int64_t>(array.shape(1)),
                    static_cast<std::int64_t>(array.shape(2))};
        };
        view.layers.push_back({ring(0, "window"), ring(1, "compressor"), ring(2, "indexer"), pool(3, "entries"),
                               pool(4, "keys")});
    }
}

}  // namespace narrows
