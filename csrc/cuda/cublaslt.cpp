#include "cuda/cublaslt.hpp"

#include <dlfcn.h>

#include <mutex>
#include <string>

namespace fastopt::lt {
namespace {

struct State {
  std::mutex mutex;
  std::string path;
  Functions functions;
  bool loaded = false;
};

State& state() {
  static State state;
  return state;
}

// A copy that the process has already loaded comes first: two in one process would each take device memory.
void* open_library(const std::string& path, std::string* why) {
  constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
  for (const char* name : kNames)
    if (void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return library;
  const auto open = [&](const char* name) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library && why->empty()) *why = dlerror();
    return library;
  };
  if (!path.empty())
    if (void* library = open(path.c_str())) return library;
  for (const char* name : kNames)
    if (void* library = open(name)) return library;
  return nullptr;
}

template <class F>
void find(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
  if (!function) throw MissingLibrary(std::string("this copy of cuBLASLt has no ") + name);
}

Functions load(const std::string& path) {
  std::string why;
  void* library = open_library(path, &why);
  if (!library)
    throw MissingLibrary(
        "matrix products on a GPU need cuBLASLt, and it is not there: pip install nvidia-cublas, or "
        "pip install \"fastopt[cuda13]\" (" +
        why + ")");
  Functions f;
  find(library, "cublasLtGetVersion", f.version);
  find(library, "cublasLtCreate", f.create);
  find(library, "cublasLtMatmulDescCreate", f.desc_create);
  find(library, "cublasLtMatmulDescDestroy", f.desc_destroy);
  find(library, "cublasLtMatmulDescSetAttribute", f.desc_set);
  find(library, "cublasLtMatrixLayoutCreate", f.layout_create);
  find(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy);
  find(library, "cublasLtMatmulPreferenceCreate", f.preference_create);
  find(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set);
  find(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic);
  find(library, "cublasLtMatmul", f.matmul);
  return f;
}

const char* text(Status status) {
  switch (status) {
    case Status::not_initialized:
      return "the library could not be initialized: no usable GPU, or too little device memory";
    case Status::alloc_failed:
      return "the library could not allocate memory";
    case Status::invalid_value:
      return "a value is out of range";
    case Status::arch_mismatch:
      return "this GPU lacks what it takes";
    case Status::mapping_error:
      return "device memory could not be read";
    case Status::execution_failed:
      return "the GPU could not run it";
    case Status::not_supported:
      return "this combination of sizes, types and options is not supported";
    case Status::license_error:
      return "a license is missing";
    default:
      return "an internal error";
  }
}

}  // namespace

const Functions& functions() {
  State& own = state();
  const std::lock_guard<std::mutex> lock(own.mutex);
  if (!own.loaded) {
    own.functions = load(own.path);
    own.loaded = true;
  }
  return own.functions;
}

void set_library_path(const char* path) {
  State& own = state();
  const std::lock_guard<std::mutex> lock(own.mutex);
  own.path = path;
}

void use_functions(const Functions& functions) {
  State& own = state();
  const std::lock_guard<std::mutex> lock(own.mutex);
  own.functions = functions;
  own.loaded = true;
}

void check(Status status, const char* what) {
  if (status == Status::success) return;
  throw std::runtime_error(std::string("cuBLASLt, ") + what + ": " + text(status) + " (status " +
                           std::to_string(int(status)) + ")");
}

}  // namespace fastopt::lt
