// The Python module fused_preact._cuda: addresses and sizes become records, the GIL is released, a status becomes an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "attempt.h"
#include "kernels.h"
#include "unit.h"

namespace py = pybind11;

namespace {

using namespace fused_preact::cuda;

using Address = uintptr_t;  // 0: absent

template <class T = void>
const T* in(Address a) {
    return reinterpret_cast<const T*>(a);
}
template <class T = void>
T* out(Address a) {
    return reinterpret_cast<T*>(a);
}

void check(const Failure& failure) {
    if (failure.impossible) throw py::value_error(failure.text);
    if (!failure.text.empty()) throw std::runtime_error(failure.text);
}

template <class Record>
void launch(const char* name, Status (*kernel)(const Record&), const Record& record) {
    check([&] {
        py::gil_scoped_release release;
        return attempt(name, kernel, record);
    }());
}

void bind_elementwise(py::module_& m) {
    m.def(
        "bn_stats",
        [](int device, Address stream, Dtype dtype, int64_t pixels, int channels, const Grid& grid, int tiles, Address x, Address stats) {
            Elementwise args{{device, stream}, grid, dtype, pixels, channels};
            args.x = in(x), args.sums = out<float>(stats), args.tiles = tiles;
            launch("bn_stats", launch_bn_stats, args);
        },
        "stats [tiles, 3, channels] of x.");
    m.def(
        "bn_relu",
        [](int device, Address stream, Dtype dtype, int64_t pixels, int channels, const Grid& grid, int64_t pitch, bool relu, Address x, Address bn, Address z) {
            Elementwise args{{device, stream}, grid, dtype, pixels, channels, relu};
            args.x = in(x), args.bn = in<float>(bn), args.bn_pitch = pitch, args.out = out(z);
            launch("bn_relu", launch_bn_relu, args);
        },
        "z = relu(bn(x)).");
    m.def(
        "bn_relu_bwd",
        [](int device, Address stream, Dtype dtype, int64_t pixels, int channels, const Grid& grid, int64_t pitch, bool relu, int tiles, Address dz, Address x,
           Address bn, Address g, Address sums) {
            Elementwise args{{device, stream}, grid, dtype, pixels, channels, relu};
            args.x = in(x), args.bn = in<float>(bn), args.bn_pitch = pitch, args.grad = in(dz), args.out = out(g), args.sums = out<float>(sums), args.tiles = tiles;
            launch("bn_relu_bwd", launch_bn_relu_bwd, args);
        },
        "g and its sums [tiles, 2, channels].");
    m.def(
        "bn_bwd",
        [](int device, Address stream, Dtype dtype, int64_t pixels, int channels, const Grid& grid, Address g, Address x, Address coeffs, Address add, Address dx) {
            Elementwise args{{device, stream}, grid, dtype, pixels, channels};
            args.x = in(x), args.coeffs = in<float>(coeffs), args.grad = in(g), args.add = in(add), args.out = out(dx);
            launch("bn_bwd", launch_bn_bwd, args);
        },
        "dx = a*g + b*(x - mean) + c + add.");
}

void bind_vectors(py::module_& m) {
    m.def(
        "bn_merge",
        [](int device, Address stream, int tiles, int channels, Address stats, Address merged) {
            BnFinalize args{{device, stream}, tiles, channels, in<float>(stats)};
            args.bn = out<float>(merged), args.bn_pitch = channels;
            launch("bn_merge", launch_bn_merge, args);
        },
        "merged [3, channels].");
    m.def(
        "bn_finalize",
        [](int device, Address stream, int tiles, int channels, bool frozen, bool cumulative, float momentum, float eps, Address stats, Address gamma, Address beta,
           Address running_mean, Address running_var, Address num_batches_tracked, Address bn) {
            launch("bn_finalize", launch_bn_finalize,
                   BnFinalize{{device, stream}, tiles, channels, in<float>(stats), in<float>(gamma), in<float>(beta), out<float>(running_mean),
                              out<float>(running_var), out<int64_t>(num_batches_tracked), cumulative, momentum, eps, frozen, out<float>(bn), channels});
        },
        "bn [5, channels]; moves the running statistics, if they are given.");
    m.def(
        "bn_coeffs",
        [](int device, Address stream, int tiles, int channels, int64_t pitch, Address sums, Address bn, Address coeffs, Address dgamma, Address dbeta) {
            launch("bn_coeffs", launch_bn_coeffs,
                   BnCoeffs{{device, stream}, tiles, channels, in<float>(sums), in<float>(bn), pitch, out<float>(coeffs), out<float>(dgamma), out<float>(dbeta)});
        },
        "coeffs [4, channels], dgamma, dbeta.");
}

Axis axis(const std::array<int, 6>& a) { return {a[0], a[1], a[2], a[3], a[4], a[5]}; }

void bind_conv(py::module_& m) {
    py::class_<Conv>(m, "Conv", "Images, channels in and out; of each axis its size in and out, kernel, stride, padding and dilation.")
        .def(py::init([](int n, int c, int k, const std::array<int, 6>& y, const std::array<int, 6>& x) { return Conv{n, c, k, axis(y), axis(x)}; }));
    py::class_<ConvTile>(m, "ConvTile", "Pixels, channels summed over and output channels at a time; blocks, and their bytes of shared memory.")
        .def(py::init([](int pixels, int slab, int out, int blocks, int shared) { return ConvTile{pixels, slab, out, blocks, shared}; }));
    m.def(
        "bn_relu_conv2d_fwd",
        [](int device, Address stream, Dtype dtype, const Conv& conv, const ConvTile& tile, int64_t pitch, bool relu, int tiles, Address x, Address bn,
           Address weight, Address bias, Address residual, Address y, Address stats) {
            launch("bn_relu_conv2d_fwd", launch_bn_relu_conv2d_fwd,
                   BnReluConv2dFwd{{device, stream}, tile, dtype, conv, relu, in(x), in<float>(bn), pitch, in(weight), in<float>(bias), in(residual), out(y),
                                   out<float>(stats), tiles});
        },
        "y, and its stats [tiles, 3, k].");
    py::class_<WgradTile>(m, "WgradTile", "Pixels at a time, output and input channels of a block; parts of dweight, and a block's bytes of shared memory.")
        .def(py::init([](int pixels, int k, int c, int parts, int shared) { return WgradTile{pixels, k, c, parts, shared}; }));
    py::enum_<Emit>(m, "Emit")
        .value("none", Emit::none)
        .value("dz", Emit::dz)
        .value("g", Emit::g)
        .value("sums", Emit::sums)
        .value("dx", Emit::dx)
        .value("dx_sums", Emit::dx_sums);
    m.def(
        "bn_relu_conv2d_bwd",
        [](int device, Address stream, Dtype dtype, const Conv& conv, const ConvTile& dgrad, const WgradTile& wgrad, int64_t pitch, bool relu, Emit emit, int tiles,
           bool taps_last, Address dy, Address dy_x, Address dy_coeffs, Address x, Address bn, Address weight, Address add_dz, Address coeffs,
           Address residual_grad, Address out_, Address sums, Address parts, Address dweight) {
            launch("bn_relu_conv2d_bwd", launch_bn_relu_conv2d_bwd,
                   BnReluConv2dBwd{{device, stream}, dgrad, wgrad, dtype, conv, relu, emit, in(dy), in(dy_x), in<float>(dy_coeffs), in(x), in<float>(bn), pitch,
                                   in(weight), in(add_dz), in<float>(coeffs), in(residual_grad), out(out_), out<float>(sums), tiles, out<float>(parts),
                                   out(dweight), taps_last});
        },
        "out and sums [tiles, 2, c], as emit says; parts of dweight and dweight.");
}

using Addresses = std::vector<Address>;

template <class T>
std::vector<T*> all(const Addresses& addresses) {
    std::vector<T*> pointers;
    for (Address a : addresses) pointers.push_back(reinterpret_cast<T*>(a));
    return pointers;
}

void unit_fwd(const Unit& unit, int device, Address stream, bool again, int stats_tiles, Address x, Address stats, Address projection, const Addresses& layers,
              const Addresses& inner, Address bns, Address y, Address y_stats, Address workspace) {
    constexpr size_t EACH = 6;
    UnitFwd args{{device, stream}, again, in(x), in<float>(stats), stats_tiles, in(projection), {}, all<void>(inner), out<float>(bns), out(y), out<float>(y_stats), out(workspace)};
    for (size_t i = 0; i + EACH <= layers.size(); i += EACH) {
        const Address* a = &layers[i];
        args.layers.push_back({in<float>(a[0]), in<float>(a[1]), in(a[2]), out<float>(a[3]), out<float>(a[4]), out<int64_t>(a[5])});
    }
    check([&] {
        py::gil_scoped_release release;
        return launch_unit_fwd(unit, args);
    }());
}

void unit_bwd(const Unit& unit, int device, Address stream, Address dy, Address x, Address bns, Address projection, const Addresses& inner,
              const Addresses& weights, Address dx, Address dprojection, const Addresses& dgamma, const Addresses& dbeta, const Addresses& dweight,
              Address workspace) {
    const UnitBwd args{{device, stream},  in(dy), in(x), in<float>(bns), in(projection), all<const void>(inner), all<const void>(weights), out(dx), out(dprojection),
                       all<float>(dgamma), all<float>(dbeta), all<void>(dweight), out(workspace)};
    check([&] {
        py::gil_scoped_release release;
        return launch_unit_bwd(unit, args);
    }());
}

py::list named(const std::vector<Piece>& pieces) {
    py::list all;
    for (const Piece& piece : pieces) all.append(py::make_tuple(piece.name, piece.offset, piece.bytes));
    return all;
}

void bind_unit(py::module_& m) {
    py::class_<TiledConv>(m, "TiledConv",
                          "A convolution, the tiles of fwd, of dgrad and wgrad together, and of each alone, and whether dweight has the taps last.")
        .def(py::init([](const Conv& conv, const ConvTile& fwd, const ConvTile& dgrad, const WgradTile& wgrad, const ConvTile& only_dgrad,
                         const WgradTile& only_wgrad, bool taps_last) { return TiledConv{conv, fwd, {dgrad, wgrad}, {only_dgrad, only_wgrad}, taps_last}; }));
    using Layer = std::tuple<TiledConv, int, bool, bool, bool, bool, bool, float, float>;
    py::class_<Unit>(m, "Unit",
                     "A residual unit; a layer is (convolution, tiles of its input's statistics, relu, norm, batch, update, cumulative, momentum, eps).")
        .def(py::init([](Dtype dtype, const std::vector<Layer>& layers, bool shared, const std::optional<TiledConv>& projection, int y_tiles, const Grid& stats,
                         const Grid& elements, bool two_dgrads) {
            Unit unit{dtype, {}, projection.has_value(), shared, projection.value_or(TiledConv{}), y_tiles, stats, elements, two_dgrads};
            for (const auto& [own, tiles, relu, norm, batch, update, cumulative, momentum, eps] : layers)
                unit.layers.push_back({own, tiles, relu, norm, batch, update, cumulative, momentum, eps});
            if (const char* error = impossible(unit)) throw py::value_error(std::string("a unit's plan: ") + error);
            return unit;
        }))
        .def("fwd_workspace", [](const Unit& unit, bool keep) { return named(unit_fwd_workspace(unit, keep)); }, "(name, offset, bytes) of what fwd works in.")
        .def("bwd_workspace", [](const Unit& unit, bool kept) { return named(unit_bwd_workspace(unit, kept)); }, "(name, offset, bytes) of what bwd works in.")
        .def("fwd", &unit_fwd, "y, its stats, bns and inner activations.")
        .def("bwd", &unit_bwd, "dx and the gradients of the parameters.");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Native kernels for CUDA GPUs. Calls return before the device is done.";
    m.attr("architectures") = FUSED_PREACT_CUDA_ARCHS;
    m.def("versions", [] { return std::make_pair(versions().driver, versions().runtime); }, "CUDA's versions, such as 13000, of the driver and of the library.");
    py::enum_<Dtype>(m, "Dtype").value("float32", Dtype::float32).value("bfloat16", Dtype::bfloat16).value("float16", Dtype::float16);
    py::class_<Grid>(m, "Grid", "Threads of a block across channels and down pixels, and blocks.").def(py::init([](int columns, int rows, int blocks) {
        return Grid{columns, rows, blocks};
    }));
    bind_elementwise(m);
    bind_vectors(m);
    bind_conv(m);
    bind_unit(m);
}
