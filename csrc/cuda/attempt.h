// A launch that is checked first, and what is wrong with it in a sentence.
#pragma once
#include <string>

#include "checks.h"

namespace fused_preact::cuda {

struct Failure {
    std::string text;  // empty: there is none
    bool impossible = false;
};

inline std::string sizes(const Elementwise& a) { return std::to_string(a.pixels) + " pixels x " + std::to_string(a.channels) + " channels"; }
inline std::string sizes(const BnFinalize& a) { return std::to_string(a.tiles) + " tiles x " + std::to_string(a.channels) + " channels"; }
inline std::string sizes(const BnCoeffs& a) { return std::to_string(a.tiles) + " tiles x " + std::to_string(a.channels) + " channels"; }
inline std::string sizes(const Axis& y, const Axis& x) { return std::to_string(y.kernel) + "x" + std::to_string(x.kernel); }
inline std::string sizes(const Conv& a) {
    return std::to_string(a.n) + " images of " + std::to_string(a.y.in) + "x" + std::to_string(a.x.in) + ", " + sizes(a.y, a.x) + ", " + std::to_string(a.c) +
           " channels to " + std::to_string(a.k);
}
inline std::string sizes(const BnReluConv2dFwd& a) { return sizes(a.conv); }
inline std::string sizes(const BnReluConv2dBwd& a) { return sizes(a.conv); }
inline std::string sizes(const PartSums& a) { return std::to_string(a.count) + " gradients"; }

template <class Record>
Failure attempt(const char* name, Status (*kernel)(const Record&), const Record& record) {
    if (const char* error = impossible(record)) return {std::string(name) + " of " + sizes(record) + ": " + error, true};
    const Status status = kernel(record);
    if (!status.error) return {};
    return {std::string(name) + " of " + sizes(record) + " failed on cuda:" + std::to_string(record.target.device) + ": " + status.error};
}

}  // namespace fused_preact::cuda
