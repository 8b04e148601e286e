// The Python module narrows.ops._native: arguments are checked here, cut into rows here, computed in the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "attention_tiles.hpp"
#include "inference_module.hpp"
#include "kernels.hpp"
#include "threads.hpp"

using namespace nb::literals;

namespace narrows {
namespace {

constexpr std::int64_t IGNORED = -100;  // the target of a row that counts nothing
constexpr std::int64_t PART = 64;  // rows a thread takes at a time

struct Choice {
    std::string name;
    const Kernels* kernels;
};

std::vector<Choice> available() {
    std::vector<Choice> found;
#ifdef NARROWS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16"))
            found.push_back({"avx512bf16", &avx512bf16::kernels});
        found.push_back({"avx512", &avx512::kernels});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"avx2", &avx2::kernels});
#endif
    found.push_back({"portable", &portable::kernels});
    return found;
}

Choice& choice() {
    static Choice chosen = available().front();
    return chosen;
}

}  // namespace

const Kernels& k() { return *choice().kernels; }

namespace {

void hyper_read(In3 streams, In2 fn, In1 base, float scale, float eps, float norm_eps, Out2 out, Out2 mixes,
                Out1 inverse) {
    const std::int64_t rows = streams.shape(0), d = streams.shape(2), count = fn.shape(0);
    is(streams, {rows, STREAMS, d}, "streams [N, 4, d]");
    is(fn, {count, STREAMS * d}, "fn [M, 4 d]");
    require(count >= STREAMS, "fn [M, 4 d], M at least 4");
    is(base, {STREAMS}, "base [4]");
    is(out, {rows, d}, "out [N, d]");
    is(mixes, {rows, count}, "mixes [N, M]");
    is(inverse, {rows}, "inverse [N]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().hyper_read(begin, end, d, count, streams.data(), fn.data(), base.data(), scale, eps, norm_eps,
                       out.data(), mixes.data(), inverse.data());
    });
}

void hyper_read_gradient(In3 streams, In2 fn, In1 base, float scale, float eps, In2 mixes, In1 inverse, In2 by_out,
                         In2 by_others, Out3 by_streams, Out2 scaled, Out2 by_pre) {
    const std::int64_t rows = streams.shape(0), d = streams.shape(2), count = fn.shape(0);
    is(streams, {rows, STREAMS, d}, "streams [N, 4, d]");
    is(fn, {count, STREAMS * d}, "fn [M, 4 d]");
    require(count >= STREAMS, "fn [M, 4 d], M at least 4");
    is(base, {STREAMS}, "base [4]");
    is(mixes, {rows, count}, "mixes [N, M]");
    is(inverse, {rows}, "inverse [N]");
    is(by_out, {rows, d}, "by_out [N, d]");
    is(by_others, {rows, count - STREAMS}, "by_others [N, M - 4]");
    is(by_streams, {rows, STREAMS, d}, "by_streams [N, 4, d]");
    is(scaled, {rows, count}, "scaled [N, M]");
    is(by_pre, {rows, STREAMS}, "by_pre [N, 4]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().hyper_read_gradient(begin, end, d, count, streams.data(), fn.data(), base.data(), scale, eps,
                                mixes.data(), inverse.data(), by_out.data(), by_others.data(), by_streams.data(),
                                scaled.data(), by_pre.data());
    });
}

void hyper_strengths(In2 logits, Out2 result) {
    const std::int64_t rows = logits.shape(0);
    is(logits, {rows, STREAMS}, "logits [N, 4]");
    is(result, {rows, STREAMS}, "result [N, 4]");
    nb::gil_scoped_release release;
    parallel(rows, 4 * PART, [&](std::int64_t begin, std::int64_t end) {
        k().hyper_strengths(begin, end, logits.data(), result.data());
    });
}

void hyper_post(In3 streams, In2 out, In2 post, In3 comb, Out3 result) {
    const std::int64_t rows = streams.shape(0), d = streams.shape(2);
    is(streams, {rows, STREAMS, d}, "streams [N, 4, d]");
    is(out, {rows, d}, "out [N, d]");
    is(post, {rows, STREAMS}, "post [N, 4]");
    is(comb, {rows, STREAMS, STREAMS}, "comb [N, 4, 4]");
    is(result, {rows, STREAMS, d}, "result [N, 4, d]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().hyper_post(begin, end, d, streams.data(), out.data(), post.data(), comb.data(), result.data());
    });
}

void hyper_post_gradient(In3 streams, In2 out, In2 post, In3 comb, In3 by_result, Out3 by_streams, Out2 by_out,
                         Out2 by_post, Out3 by_comb) {
    const std::int64_t rows = streams.shape(0), d = streams.shape(2);
    is(streams, {rows, STREAMS, d}, "streams [N, 4, d]");
    is(out, {rows, d}, "out [N, d]");
    is(post, {rows, STREAMS}, "post [N, 4]");
    is(comb, {rows, STREAMS, STREAMS}, "comb [N, 4, 4]");
    is(by_result, {rows, STREAMS, d}, "by_result [N, 4, d]");
    is(by_streams, {rows, STREAMS, d}, "by_streams [N, 4, d]");
    is(by_out, {rows, d}, "by_out [N, d]");
    is(by_post, {rows, STREAMS}, "by_post [N, 4]");
    is(by_comb, {rows, STREAMS, STREAMS}, "by_comb [N, 4, 4]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().hyper_post_gradient(begin, end, d, streams.data(), out.data(), post.data(), comb.data(),
                                by_result.data(), by_streams.data(), by_out.data(), by_post.data(), by_comb.data());
    });
}

void sinkhorn(In3 logits, int iterations, float eps, Out3 result) {
    const std::int64_t rows = logits.shape(0);
    is(logits, {rows, STREAMS, STREAMS}, "logits [N, 4, 4]");
    is(result, {rows, STREAMS, STREAMS}, "result [N, 4, 4]");
    require_iterations(iterations);
    nb::gil_scoped_release release;
    parallel(rows, 4 * PART, [&](std::int64_t begin, std::int64_t end) {
        k().sinkhorn(begin, end, iterations, eps, logits.data(), result.data());
    });
}

void sinkhorn_gradient(In3 logits, int iterations, float eps, In3 by_result, Out3 by_logits) {
    const std::int64_t rows = logits.shape(0);
    is(logits, {rows, STREAMS, STREAMS}, "logits [N, 4, 4]");
    is(by_result, {rows, STREAMS, STREAMS}, "by_result [N, 4, 4]");
    is(by_logits, {rows, STREAMS, STREAMS}, "by_logits [N, 4, 4]");
    require_iterations(iterations);
    nb::gil_scoped_release release;
    parallel(rows, 4 * PART, [&](std::int64_t begin, std::int64_t end) {
        k().sinkhorn_gradient(begin, end, iterations, eps, logits.data(), by_result.data(), by_logits.data());
    });
}

void rms_norm(In2 x, std::optional<In1> weight, float eps, Out2 result, Out1 inverse) {
    const std::int64_t rows = x.shape(0), d = x.shape(1);
    is(x, {rows, d}, "x [N, d]");
    if (weight) is(*weight, {d}, "weight [d]");
    is(result, {rows, d}, "result [N, d]");
    is(inverse, {rows}, "inverse [N]");
    nb::gil_scoped_release release;
    parallel(rows, 4 * PART, [&](std::int64_t begin, std::int64_t end) {
        k().rms_norm(begin, end, d, x.data(), weight ? weight->data() : nullptr, eps, result.data(), inverse.data());
    });
}

void rms_norm_gradient(In2 x, std::optional<In1> weight, In1 inverse, In2 by_result, Out2 by_x,
                       std::optional<Out1> by_weight) {
    const std::int64_t rows = x.shape(0), d = x.shape(1);
    is(x, {rows, d}, "x [N, d]");
    if (weight) is(*weight, {d}, "weight [d]");
    is(inverse, {rows}, "inverse [N]");
    is(by_result, {rows, d}, "by_result [N, d]");
    is(by_x, {rows, d}, "by_x [N, d]");
    if (by_weight) is(*by_weight, {d}, "by_weight [d]");
    nb::gil_scoped_release release;
    // Every part sums its own rows, and the parts are added in their order: the same bits on any number of threads.
    constexpr std::int64_t part = 4 * PART;
    std::vector<float> partial(by_weight ? (rows + part - 1) / part * d : 0);
    parallel(rows, part, [&](std::int64_t begin, std::int64_t end) {
        k().rms_norm_gradient(begin, end, d, x.data(), weight ? weight->data() : nullptr, inverse.data(),
                              by_result.data(), by_x.data(), by_weight ? partial.data() + begin / part * d : nullptr);
    });
    if (!by_weight) return;
    float* to = by_weight->data();
    std::fill(to, to + d, 0.0f);
    for (std::size_t start = 0; start < partial.size(); start += d)
        for (std::int64_t i = 0; i < d; ++i) to[i] += partial[start + i];
}

// Two tensors whose rows lie equally far apart.
template <typename Array>
std::int64_t common_stride(const Array& a, const Array& b, const char* names) {
    const std::int64_t rows = a.shape(0), width = a.shape(1);
    is(a, {rows, width}, names);
    is(b, {rows, width}, names);
    require(width <= 1 || (a.stride(1) == 1 && b.stride(1) == 1), names);
    require(rows <= 1 || a.stride(0) == b.stride(0), names);
    return rows <= 1 ? width : a.stride(0);
}

void swiglu(Rows gate, Rows up, float limit, Out2 result) {
    const std::int64_t rows = gate.shape(0), width = gate.shape(1);
    const std::int64_t stride = common_stride(gate, up, "gate and up [N, width], rows equally far apart");
    is(result, {rows, width}, "result [N, width]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().swiglu(begin, end, width, gate.data(), up.data(), stride, limit, result.data());
    });
}

void swiglu_gradient(Rows gate, Rows up, float limit, In2 by_result, OutRows by_gate, OutRows by_up,
                     std::optional<Out2> result) {
    const std::int64_t rows = gate.shape(0), width = gate.shape(1);
    const std::int64_t stride = common_stride(gate, up, "gate and up [N, width], rows equally far apart");
    const std::int64_t by_stride = common_stride(by_gate, by_up, "by_gate and by_up [N, width], equally far apart");
    is(by_result, {rows, width}, "by_result [N, width]");
    is(by_gate, {rows, width}, "by_gate [N, width]");
    if (result) is(*result, {rows, width}, "result [N, width]");
    nb::gil_scoped_release release;
    parallel(rows, PART, [&](std::int64_t begin, std::int64_t end) {
        k().swiglu_gradient(begin, end, width, gate.data(), up.data(), stride, limit, by_result.data(),
                            by_gate.data(), by_up.data(), by_stride, result ? result->data() : nullptr);
    });
}

void cross_entropy(Out2 logits, Integers1 targets, Out1 losses) {
    const std::int64_t rows = logits.shape(0), vocab = logits.shape(1);
    is(logits, {rows, vocab}, "logits [N, vocab]");
    is(targets, {rows}, "targets [N]");
    is(losses, {rows}, "losses [N]");
    for (std::int64_t n = 0; n < rows; ++n) {
        const std::int64_t target = targets.data()[n];
        refuse_if(target != IGNORED && (target < 0 || target >= vocab), "targets must be of the vocabulary, or -100");
    }
    nb::gil_scoped_release release;
    parallel(rows, 8, [&](std::int64_t begin, std::int64_t end) {
        k().cross_entropy(begin, end, vocab, logits.data(), targets.data(), losses.data());
    });
}

void use(const std::string& name) {
    for (const Choice& option : available())
        if (option.name == name) {
            choice() = option;
            return;
        }
    std::string names;
    for (const Choice& option : available()) names += (names.empty() ? "" : ", ") + option.name;
    throw std::invalid_argument("this machine has no instruction set '" + name + "'; choose " + names);
}

// How an argument is taken: tensors as they are, for what is written into a converted copy would be lost.
template <typename T>
struct Argument {
    static auto taken() { return nb::arg(); }
};
template <typename... Ts>
struct Argument<nb::ndarray<Ts...>> {
    static auto taken() { return nb::arg().noconvert(); }
};
template <typename... Ts>
struct Argument<std::optional<nb::ndarray<Ts...>>> {
    static auto taken() { return nb::arg().noconvert().none(); }
};

template <typename... Args>
void define(nb::module_& m, const char* name, void (*function)(Args...)) {
    m.def(name, function, Argument<Args>::taken()...);
}

}  // namespace

NB_MODULE(_native, m) {
    // Whoever leaves an engine or a model to the end of the process leaks it, and may.
    nb::set_leak_warnings(false);
    m.doc() = "Kernels for CPUs; narrows.ops says what they compute.";
    m.attr("VERSION") = VERSION;
    m.def("instruction_sets", [] {
        nb::list names;
        for (const Choice& option : available()) names.append(option.name);
        return names;
    }, "Those that this machine has, the fastest first.");
    m.def("instruction_set", [] { return choice().name; }, "The one in use.");
    m.def("use", &use, "name"_a, "Use another instruction set, of those that there are: for tests.");
    define(m, "hyper_read", &hyper_read);
    define(m, "hyper_read_gradient", &hyper_read_gradient);
    define(m, "hyper_strengths", &hyper_strengths);
    define(m, "hyper_post", &hyper_post);
    define(m, "hyper_post_gradient", &hyper_post_gradient);
    define(m, "sinkhorn", &sinkhorn);
    define(m, "sinkhorn_gradient", &sinkhorn_gradient);
    define(m, "rms_norm", &rms_norm);
    define(m, "rms_norm_gradient", &rms_norm_gradient);
    define(m, "swiglu", &swiglu);
    define(m, "swiglu_gradient", &swiglu_gradient);
    define(m, "cross_entropy", &cross_entropy);
    define(m, "attention", &attention);
    define(m, "attention_gradient", &attention_gradient);
    define_inference(m);
}

}  // namespace narrows
