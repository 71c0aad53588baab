// The Python module fused_preact._cpu: addresses and sizes become records, the GIL is released, a status becomes an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "bn_vectors.h"
#include "checks.h"
#include "dispatch.h"
#include "dlpack.h"
#include "kernels.h"
#include "pool.h"
#include "unit.h"

namespace py = pybind11;

namespace {

using namespace fused_preact;

using Address = uintptr_t;  // 0: absent
using AxisSizes = std::array<int64_t, 6>;

const void* in(Address a) { return reinterpret_cast<const void*>(a); }
void* out(Address a) { return reinterpret_cast<void*>(a); }

// Bytes of workspace that were missing; 0: done.
template <class Record>
size_t launch(const char* name, Status (*kernel)(const Record&), const Record& record) {
    const char* error = impossible(record);
    Status status;
    if (!error) {
        py::gil_scoped_release release;
        status = kernel(record);
        error = status.error;
    }
    if (error) throw py::value_error(std::string(name) + ": " + error);
    return status.workspace;
}

Conv make_conv(int64_t n, int64_t c, int64_t k, int64_t groups, AxisSizes h, AxisSizes w, std::array<int64_t, 4> strides) {
    auto axis = [](const AxisSizes& a) { return Axis{a[0], a[1], a[2], a[3], a[4], a[5]}; };
    Conv conv{n, c, k, groups, axis(h), axis(w), {}};
    for (int i = 0; i < 4; ++i) conv.weight_strides[i] = strides[i];
    return conv;
}

size_t bn_relu_conv2d_fwd(Dtype dtype, int threads, const Conv& conv, bool relu, Address x, Address bn, Address weight, Address bias,
                          Address residual, Address y, Address stats, int64_t tiles, Address workspace, size_t bytes) {
    return launch("bn_relu_conv2d_fwd", kernels().bn_relu_conv2d_fwd,
                  BnReluConv2dFwd{dtype, threads, conv, relu, in(x), in(bn), conv.c, in(weight), in(bias), in(residual), out(y), out(stats), tiles,
                                  {out(workspace), bytes}});
}

size_t bn_relu_conv2d_bwd(Dtype dtype, int threads, const Conv& conv, bool relu, Emit emit, Address dy, Address dy_x, Address dy_coeffs,
                          Address dy_add, Address dy_out, Address x, Address bn, Address weight, Address add_dz, Address coeffs,
                          Address residual_grad, Address result, Address sums, int64_t tiles, Address dweight, Address dbias,
                          Address workspace, size_t bytes) {
    return launch("bn_relu_conv2d_bwd", kernels().bn_relu_conv2d_bwd,
                  BnReluConv2dBwd{dtype, threads, conv, relu, emit, {in(dy), in(dy_x), in(dy_coeffs), in(dy_add), out(dy_out)}, in(x), in(bn),
                                  conv.c, in(weight), in(add_dz), in(coeffs), in(residual_grad), out(result), out(sums), tiles, out(dweight),
                                  out(dbias), {out(workspace), bytes}});
}

void bind_elementwise(py::module_& m) {
    m.def(
        "bn_stats",
        [](Dtype dtype, int threads, int64_t pixels, int64_t channels, Address x, Address stats, int64_t tiles, Address workspace, size_t bytes) {
            Elementwise record{dtype, threads, pixels, channels, tiles, false, in(x), nullptr, 0, nullptr, nullptr, nullptr, nullptr, out(stats),
                               {out(workspace), bytes}};
            return launch("bn_stats", kernels().bn_stats, record);
        },
        "stats [tiles, 3, channels] of x.");
    m.def(
        "bn_relu",
        [](Dtype dtype, int threads, int64_t pixels, int64_t channels, bool relu, Address x, Address bn, Address z, Address workspace,
           size_t bytes) {
            Elementwise record{dtype, threads, pixels, channels, 0, relu, in(x), in(bn), channels, nullptr, nullptr, nullptr, out(z), nullptr,
                               {out(workspace), bytes}};
            return launch("bn_relu", kernels().bn_relu, record);
        },
        "z = relu(bn(x)).");
    m.def(
        "bn_relu_bwd",
        [](Dtype dtype, int threads, int64_t pixels, int64_t channels, bool relu, Address dz, Address x, Address bn, Address g, Address sums,
           int64_t tiles, Address workspace, size_t bytes) {
            Elementwise record{dtype, threads, pixels, channels, tiles, relu, in(x), in(bn), channels, in(dz), nullptr, nullptr, out(g), out(sums),
                               {out(workspace), bytes}};
            return launch("bn_relu_bwd", kernels().bn_relu_bwd, record);
        },
        "g, and sums [tiles, 2, channels].");
    m.def(
        "bn_bwd",
        [](Dtype dtype, int threads, int64_t pixels, int64_t channels, Address g, Address x, Address coeffs, Address add, Address dx,
           Address workspace, size_t bytes) {
            Elementwise record{dtype, threads, pixels, channels, 0, false, in(x), nullptr, 0, in(g), in(coeffs), in(add), out(dx), nullptr,
                               {out(workspace), bytes}};
            return launch("bn_bwd", kernels().bn_bwd, record);
        },
        "dx = a*g + b*(x - mean) + c + add.");
}

void refuse(const char* name, bool impossible) {
    if (impossible) throw py::value_error(std::string(name) + ": expected all tensors, and at least one tile and channel");
}

void bind_vectors(py::module_& m) {
    m.def(
        "bn_merge", [](bool wide, int64_t tiles, int64_t channels, Address stats, Address merged) {
            refuse("bn_merge", tiles < 1 || channels < 1 || !stats || !merged);
            launch_bn_merge(wide, tiles, channels, in(stats), out(merged));
        },
        "stats [tiles, 3, channels] merged into [1, 3, channels].");
    m.def(
        "bn_finalize",
        [](bool wide, bool frozen, int64_t tiles, int64_t channels, Address stats, Address gamma, Address beta, Address running_mean,
           Address running_var, double momentum, double eps, Address bn) {
            refuse("bn_finalize", tiles < 1 || channels < 1 || !stats || !bn || !running_mean != !running_var);
            launch_bn_finalize({wide, frozen, tiles, channels, in(stats), in(gamma), in(beta), out(running_mean), out(running_var), momentum, eps,
                                out(bn), channels});
        },
        "bn [5, channels], and the running statistics moved.");
    m.def(
        "bn_coeffs",
        [](bool wide, int64_t tiles, int64_t channels, Address sums, Address bn, Address coeffs, Address dgamma, Address dbeta) {
            refuse("bn_coeffs", tiles < 0 || channels < 1 || (tiles && !sums) || !bn || !coeffs || !dgamma || !dbeta);
            launch_bn_coeffs({wide, tiles, channels, in(sums), in(bn), channels, out(coeffs), out(dgamma), out(dbeta)});
        },
        "coeffs [4, channels], dgamma, dbeta.");
}

// A unit's tensors come as addresses in one list, in the order of its layers.
using Addresses = std::vector<Address>;

std::vector<void*> outs(const Addresses& all) {
    std::vector<void*> pointers;
    for (Address a : all) pointers.push_back(out(a));
    return pointers;
}
std::vector<const void*> ins(const Addresses& all) {
    const std::vector<void*> pointers = outs(all);
    return {pointers.begin(), pointers.end()};
}

size_t finish(const char* name, const Status& status) {
    if (status.error) throw py::value_error(std::string(name) + ": " + status.error);
    return status.workspace;
}

size_t unit_fwd(const Unit& unit, int threads, bool again, Address x, Address stats, Address projection, const Addresses& layers,
                const Addresses& inner, Address bns, Address y, Address y_stats, Address workspace, size_t bytes) {
    constexpr size_t EACH = 6;
    const size_t depth = unit.layers.size();
    if (layers.size() != EACH * depth || inner.size() + 1 != depth) throw py::value_error("unit_fwd: the unit's layers have other tensors");
    UnitFwd args{threads, again, in(x), in(stats), in(projection), {}, outs(inner), out(bns), out(y), out(y_stats), {out(workspace), bytes}};
    for (const Address* a = layers.data(); a != layers.data() + layers.size(); a += EACH)
        args.layers.push_back({in(a[0]), in(a[1]), in(a[2]), out(a[3]), out(a[4]), static_cast<int64_t*>(out(a[5]))});
    return finish("unit_fwd", [&] {
        py::gil_scoped_release release;
        return launch_unit_fwd(unit, args);
    }());
}

size_t unit_bwd(const Unit& unit, int threads, Address dy, Address x, Address bns, Address projection, const Addresses& inner,
                const Addresses& weights, Address dx, Address dprojection, const Addresses& dgamma, const Addresses& dbeta,
                const Addresses& dweight, Address workspace, size_t bytes) {
    const size_t depth = unit.layers.size();
    for (const Addresses* each : {&weights, &dgamma, &dbeta, &dweight})
        if (each->size() != depth) throw py::value_error("unit_bwd: the unit's layers have other tensors");
    if (!inner.empty() && inner.size() + 1 != depth) throw py::value_error("unit_bwd: expected all inner activations or none");
    const UnitBwd args{threads, in(dy), in(x), in(bns), in(projection), ins(inner), ins(weights), out(dx), out(dprojection), outs(dgamma),
                       outs(dbeta), outs(dweight), {out(workspace), bytes}};
    return finish("unit_bwd", [&] {
        py::gil_scoped_release release;
        return launch_unit_bwd(unit, args);
    }());
}

void bind_unit(py::module_& m) {
    using Layer = std::tuple<Conv, bool, bool, bool, bool, double, double>;
    py::class_<Unit>(m, "Unit", "Sizes of a residual unit; a layer is (conv, relu, norm, batch, update, momentum (negative: cumulative), eps).")
        .def(py::init([](Dtype dtype, const std::vector<Layer>& layers, bool shared, std::optional<Conv> projection, int64_t x_tiles,
                         int64_t y_tiles) {
            Unit unit{dtype, {}, projection.has_value(), shared, projection.value_or(Conv{}), x_tiles, y_tiles};
            for (const auto& [conv, relu, norm, batch, update, momentum, eps] : layers)
                unit.layers.push_back({conv, relu, norm, batch, update, momentum, eps});
            return unit;
        }))
        .def("fwd", &unit_fwd, "y, its stats, bns and inner activations; returns the bytes of workspace that were missing.")
        .def("bwd", &unit_bwd, "dx and the gradients of the parameters; returns the bytes of workspace that were missing.");
    m.def("unit_launches", [] {
        py::dict counted;
        for (const auto& [name, count] : unit_launches()) counted[name] = count;
        return counted;
    }, "How often units launched each kernel since the library was loaded.");
}

// A tensor of NHWC memory from the pool, which gives its memory back when it dies.
struct PooledTensor {
    dlpack::ManagedTensor managed;
    int64_t shape[4], strides[4];
    PoolBlock block;

    static void destroy(dlpack::ManagedTensor* managed) {
        PooledTensor* self = static_cast<PooledTensor*>(managed->context);
        pool_give(self->block);
        delete self;
    }
};

py::capsule empty_nhwc(Dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
    const int64_t bits = dtype == Dtype::float64 ? 64 : dtype == Dtype::float32 ? 32 : 16;
    int64_t bytes = bits / 8;
    for (int64_t size : {n, c, h, w})
        if (size < 1 || __builtin_mul_overflow(bytes, size, &bytes))
            throw py::value_error("empty_nhwc: expected sizes of at least 1, and a tensor that fits memory");
    const PoolBlock block = pool_take(size_t(bytes));
    if (!block.data) throw std::bad_alloc();
    auto* t = new PooledTensor{{}, {n, c, h, w}, {h * w * c, 1, w * c, c}, block};
    const dlpack::DataType type{dtype == Dtype::bfloat16 ? dlpack::bfloat : dlpack::floating, uint8_t(bits), 1};
    t->managed = {{block.data, {dlpack::cpu, 0}, 4, type, t->shape, t->strides, 0}, t, &PooledTensor::destroy};
    return py::capsule(&t->managed, dlpack::CAPSULE, [](PyObject* capsule) {
        // Whoever takes a tensor over renames its capsule.
        if (!PyCapsule_IsValid(capsule, dlpack::CAPSULE)) return;
        auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::CAPSULE));
        managed->deleter(managed);
    });
}

void bind_pool(py::module_& m) {
    m.def("empty_nhwc", &empty_nhwc, "A DLPack capsule of an uninitialised (n, c, h, w) tensor in NHWC memory from the pool.");
    m.def("pool_use", [] { return std::make_pair(pool_use().used, pool_use().kept); }, "Bytes of the pool in use, and kept for the next.");
    m.def("pool_release", &pool_release, "Give what the pool keeps back to the system.");
}

void bind_isa(py::module_& m) {
    m.def("isas", &isas, "Instruction sets that are compiled in and that this machine supports, from the least to the most.");
    m.def("isa", &isa, "The instruction set in use.");
    m.def(
        "set_isa",
        [](const std::string& name) {
            if (set_isa(name.c_str())) return;
            std::string known;
            for (const char* one : isas()) known += (known.empty() ? "" : ", ") + std::string(one);
            throw py::value_error("this machine can't run instruction set '" + name + "', expected one of " + known);
        },
        py::arg("name"), "Use another instruction set from now on.");
    m.def(
        "probe", [](Dtype dtype, int threads, double seconds) {
            py::gil_scoped_release release;
            return kernels().probe(dtype, threads, seconds);
        },
        py::arg("dtype"), py::arg("threads"), py::arg("seconds"),
        "Multiply-adds a second that all threads reach together in a loop in L1: the ceiling in this minute.");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Native kernels for CPUs.";
    py::enum_<Dtype>(m, "Dtype").value("float32", Dtype::float32).value("float64", Dtype::float64).value("bfloat16", Dtype::bfloat16);
    py::enum_<Emit>(m, "Emit")
        .value("none", Emit::none)
        .value("dz", Emit::dz)
        .value("g", Emit::g)
        .value("sums", Emit::sums)
        .value("dx", Emit::dx)
        .value("dx_sums", Emit::dx_sums);
    py::class_<Conv>(m, "Conv", "Sizes of a convolution; an axis is (in, kernel, stride, padding, dilation, out).").def(py::init(&make_conv));
    m.def("bn_relu_conv2d_fwd", &bn_relu_conv2d_fwd, "y, and its stats [tiles, 3, k]; returns the bytes of workspace that were missing.");
    m.def("bn_relu_conv2d_bwd", &bn_relu_conv2d_bwd, "out, sums, dweight, dbias, dy_out; returns the bytes of workspace that were missing.");
    bind_elementwise(m);
    bind_vectors(m);
    bind_unit(m);
    bind_pool(m);
    bind_isa(m);
}
