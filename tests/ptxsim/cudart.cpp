// Stands in for libcudart: what nvcc's host code calls to register and launch kernels, and what the library under test asks the runtime.
// Launches run at once, on host memory. The tests talk to it through the ptxsim_ functions at the end.
#include <cstddef>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "machine.h"

using namespace ptxsim;

namespace {

// Numbers of cudaError_t and cudaDeviceAttr.
enum Error { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONFIGURATION = 9, INVALID_DEVICE_FUNCTION = 98, INVALID_DEVICE = 101, NO_KERNEL_IMAGE = 209, LAUNCH_FAILURE = 719 };
enum FunctionAttribute { MAX_DYNAMIC_SHARED = 8 };
constexpr unsigned MOST_THREADS = 1024, MOST_BLOCKS_YZ = 65535;
constexpr size_t DEFAULT_DYNAMIC_SHARED = 48 << 10;

// What the simulated device says of itself: cudaDeviceGetAttribute's number and value. The limits are those of an A100.
const std::map<int, int> ATTRIBUTES{{16, 108}, {75, 8}, {76, 0}, {97, 163 << 10}, {81, 164 << 10}, {39, 2048}, {10, LANES}};

struct Function {
    const Kernel* kernel;
    size_t dynamic_shared = DEFAULT_DYNAMIC_SHARED;
};

struct Call {
    Dim grid, block;
    size_t shared;
    void* stream;
};

struct Launch {
    std::string kernel;
    Dim grid, block;
    Counters counters;
};

struct Runtime {
    std::vector<std::unique_ptr<Module>> modules;
    std::map<const void*, Function> functions;
    std::vector<Call> calls;
    std::vector<Launch> launches;
    Regions regions;
    Config config;
    std::string report, answer;
    uint32_t count = 0;
    int error = SUCCESS;
};

// Never destroyed: libraries unregister themselves after main.
Runtime& runtime() {
    static Runtime* const it = new Runtime;
    return *it;
}

int failed(Error error) { return runtime().error = error; }

struct FatHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};

struct FatEntry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
};

struct FatWrapper {
    int magic, version;
    const uint8_t* data;
    void* names;
};

// The PTX among the images of a fat binary. It must not be compressed (nvcc -no-compress).
std::string ptx_of(const uint8_t* data) {
    constexpr uint16_t PTX = 1;
    FatHeader header;
    memcpy(&header, data, sizeof header);
    for (const uint8_t *at = data + header.header_bytes, *end = at + header.bytes; at < end;) {
        FatEntry entry;
        memcpy(&entry, at, sizeof entry);
        const char* text = reinterpret_cast<const char*>(at) + entry.header_bytes;
        if (entry.kind == PTX) return std::string(text, strnlen(text, entry.bytes));
        at += entry.header_bytes + entry.bytes;
    }
    return "";
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + '"';
}

void write(std::ostream& out, const Launch& launch) {
    const Counters& c = launch.counters;
    auto dim = [&](Dim d) { return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + "]"; };
    out << "{\"kernel\": " << quoted(launch.kernel) << ", \"grid\": " << dim(launch.grid) << ", \"block\": " << dim(launch.block)
        << ", \"instructions\": " << c.instructions << ", \"mma\": " << c.mma << ", \"shared\": [" << c.shared_wavefronts << ", " << c.shared_ideal << "], \"global\": {";
    const char* comma = "";
    for (const auto& [name, traffic] : c.global) {
        out << comma << quoted(name) << ": [" << traffic.sectors << ", " << traffic.ideal << "]";
        comma = ", ";
    }
    out << "}}";
}

int launch(const Function& function, Dim grid, Dim block, void** arguments, size_t dynamic_shared) {
    Runtime& rt = runtime();
    const Kernel* kernel = function.kernel;
    if (!kernel) return failed(NO_KERNEL_IMAGE);
    const bool possible = grid.count() > 0 && block.count() > 0 && block.count() <= MOST_THREADS && grid.y <= MOST_BLOCKS_YZ && grid.z <= MOST_BLOCKS_YZ;
    if (!possible || dynamic_shared > function.dynamic_shared) return failed(INVALID_CONFIGURATION);
    std::vector<uint8_t> parameters(kernel->parameter_bytes);
    for (size_t i = 0; i < kernel->parameters.size(); ++i)
        memcpy(&parameters[kernel->parameters[i].offset], arguments[i], kernel->parameters[i].bytes);
    rt.launches.push_back({kernel->name, grid, block, {}});
    rt.regions.begin_launch();
    try {
        Machine(*kernel, rt.config, rt.launches.back().counters, rt.regions, grid, block, dynamic_shared, ++rt.count, std::move(parameters)).run();
    } catch (const std::exception& wrong) {
        rt.report += wrong.what();
        return failed(LAUNCH_FAILURE);
    }
    return SUCCESS;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
    Runtime& rt = runtime();
    std::unique_ptr<Module> module;
    try {
        const std::string ptx = ptx_of(static_cast<FatWrapper*>(wrapper)->data);
        if (ptx.empty()) throw Unsupported("a binary without uncompressed PTX (nvcc -no-compress -gencode arch=...,code=compute_XX)");
        module = std::make_unique<Module>(ptx);
    } catch (const std::exception& wrong) {
        rt.report += std::string(wrong.what()) + "\n";
    }
    rt.modules.push_back(std::move(module));
    return reinterpret_cast<void**>(rt.modules.size());
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void** handle, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
    Runtime& rt = runtime();
    const Module* module = rt.modules[reinterpret_cast<size_t>(handle) - 1].get();
    const Kernel* kernel = nullptr;
    if (module) {
        const auto found = module->kernels.find(name);
        if (found != module->kernels.end()) kernel = found->second.get();
    }
    rt.functions[function] = {kernel};
}

unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void* stream) {
    runtime().calls.push_back({grid, block, shared, stream});
    return SUCCESS;
}

int __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared, void* stream) {
    const Call call = runtime().calls.back();
    runtime().calls.pop_back();
    *grid = call.grid, *block = call.block, *shared = call.shared;
    memcpy(stream, &call.stream, sizeof call.stream);
    return SUCCESS;
}

int __cudaGetKernel(void** kernel, const void* function) {
    const auto found = runtime().functions.find(function);
    if (found == runtime().functions.end()) return failed(INVALID_DEVICE_FUNCTION);
    *kernel = &found->second;
    return SUCCESS;
}

int __cudaLaunchKernel(void* kernel, Dim grid, Dim block, void** arguments, size_t shared, void*) {
    return launch(*static_cast<Function*>(kernel), grid, block, arguments, shared);
}

int cudaLaunchKernel(const void* function, Dim grid, Dim block, void** arguments, size_t shared, void*) {
    const auto found = runtime().functions.find(function);
    return found == runtime().functions.end() ? failed(INVALID_DEVICE_FUNCTION) : launch(found->second, grid, block, arguments, shared);
}

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
    const auto found = runtime().functions.find(function);
    if (found == runtime().functions.end()) return failed(INVALID_DEVICE_FUNCTION);
    if (attribute != MAX_DYNAMIC_SHARED) return SUCCESS;
    const size_t fixed = found->second.kernel ? found->second.kernel->shared_bytes : 0;
    if (value < 0 || size_t(value) + fixed > size_t(ATTRIBUTES.at(97))) return failed(INVALID_VALUE);
    found->second.dynamic_shared = size_t(value);
    return SUCCESS;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    const auto found = ATTRIBUTES.find(attribute);
    if (device != 0) return failed(INVALID_DEVICE);
    if (found == ATTRIBUTES.end()) return failed(INVALID_VALUE);
    *value = found->second;
    return SUCCESS;
}

int cudaDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cudaRuntimeGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cudaGetDeviceCount(int* count) { return *count = 1, SUCCESS; }
int cudaGetDevice(int* device) { return *device = 0, SUCCESS; }
int cudaSetDevice(int device) { return device == 0 ? SUCCESS : failed(INVALID_DEVICE); }

int cudaMemsetAsync(void* data, int value, size_t bytes, void*) {
    memset(data, value, bytes);
    return SUCCESS;
}

int cudaPeekAtLastError() { return runtime().error; }

int cudaGetLastError() {
    const int error = runtime().error;
    runtime().error = SUCCESS;
    return error;
}

const char* cudaGetErrorString(int error) {
    static const std::map<int, const char*> TEXTS{{SUCCESS, "no error"},
                                                  {INVALID_VALUE, "invalid argument"},
                                                  {INVALID_CONFIGURATION, "invalid configuration argument"},
                                                  {INVALID_DEVICE_FUNCTION, "invalid device function"},
                                                  {INVALID_DEVICE, "invalid device ordinal"},
                                                  {NO_KERNEL_IMAGE, "no kernel image is available for execution on the device"},
                                                  {LAUNCH_FAILURE, "unspecified launch failure"}};
    const auto found = TEXTS.find(error);
    return found == TEXTS.end() ? "unrecognized error code" : found->second;
}

// Memory that kernels may touch from now on.
void ptxsim_region(const void* data, size_t bytes, const char* name, int writable) { runtime().regions.add(data, bytes, name, writable != 0); }

// Before the next launch: forgets which memory kernels may touch, and what was reported.
void ptxsim_next() {
    runtime().regions.clear();
    runtime().report.clear();
    runtime().error = SUCCESS;
}

// Forgets launches too.
void ptxsim_clear() {
    ptxsim_next();
    runtime().launches.clear();
}

void ptxsim_configure(int order, uint64_t seed, int copies_at_once, int checks) { runtime().config = {Order(order), seed, copies_at_once != 0, checks != 0}; }

// Everything that was wrong, a sentence a line.
const char* ptxsim_report() { return runtime().report.c_str(); }

// The launches since the last clear, as JSON.
const char* ptxsim_launches() {
    std::ostringstream out;
    out << "[";
    for (size_t i = 0; i < runtime().launches.size(); ++i) {
        if (i) out << ", ";
        write(out, runtime().launches[i]);
    }
    out << "]";
    runtime().answer = out.str();
    return runtime().answer.c_str();
}
}
