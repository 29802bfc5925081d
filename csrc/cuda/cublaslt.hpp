// The part of cuBLASLt that products need. It is declared here and found when first used, so that neither a
// build nor a process that multiplies nothing on a GPU needs the library. Values are those of NVIDIA's
// reference of the cuBLASLt API, the same in versions 12 and 13.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

struct CUstream_st;

namespace fastopt::lt {

enum class Status : int {
  success = 0,
  not_initialized = 1,
  alloc_failed = 3,
  invalid_value = 7,
  arch_mismatch = 8,
  mapping_error = 11,
  execution_failed = 13,
  internal_error = 14,
  not_supported = 15,
  license_error = 16
};

enum class DataType : std::int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 14 };
enum class Compute : std::int32_t { f32 = 68, f64 = 70, fast_tf32 = 77 };
enum class Operation : std::int32_t { none = 0, transpose = 1 };

// bias adds a vector of D's rows; aux keeps the activation's input, or reads it (dgelu); bgrad leaves the
// sums of D's rows, bgrad_a and bgrad_b those of op(A)'s rows and op(B)'s columns over k, in the bias's
// place.
enum class Epilogue : std::uint32_t {
  none = 1,
  bias = 4,
  gelu = 32,
  gelu_bias = 36,
  gelu_aux = 160,
  gelu_aux_bias = 164,
  dgelu = 192,
  dgelu_bgrad = 208,
  bgrad_a = 256,
  bgrad_b = 512
};

enum class PointerMode : std::int32_t { host = 0, device = 1 };

enum class DescAttribute : int {
  pointer_mode = 2,  // PointerMode, of alpha and beta
  transpose_a = 3,
  transpose_b = 4,
  epilogue = 7,      // Epilogue
  bias_pointer = 8,  // void*
  aux_pointer = 11,  // void*
  aux_ld = 12        // int64, in elements
};
enum class PreferenceAttribute : int {
  most_workspace = 1,  // uint64, bytes
  alignment_a = 5,
  alignment_b = 6,
  alignment_c = 7,
  alignment_d = 8  // uint32, bytes
};

struct Algo {
  std::uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  std::size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Algo) == 64 && sizeof(Heuristic) == 96);

using Handle = struct HandleOpaque*;
using Desc = struct DescOpaque*;
using Layout = struct LayoutOpaque*;
using Preference = struct PreferenceOpaque*;

struct Functions {
  std::size_t (*version)();
  Status (*create)(Handle* handle);
  Status (*desc_create)(Desc* desc, Compute compute, DataType scale);
  Status (*desc_destroy)(Desc desc);
  Status (*desc_set)(Desc desc, DescAttribute attribute, const void* value, std::size_t bytes);
  Status (*layout_create)(Layout* layout, DataType type, std::uint64_t rows, std::uint64_t columns,
                          std::int64_t ld);
  Status (*layout_destroy)(Layout layout);
  Status (*preference_create)(Preference* preference);
  Status (*preference_destroy)(Preference preference);
  Status (*preference_set)(Preference preference, PreferenceAttribute attribute, const void* value,
                           std::size_t bytes);
  Status (*heuristic)(Handle handle, Desc desc, Layout a, Layout b, Layout c, Layout d, Preference preference,
                      int wanted, Heuristic* results, int* found);
  // D = epilogue(alpha op(A) op(B) + beta C); alpha and beta are where the description says, of its scale
  // type.
  Status (*matmul)(Handle handle, Desc desc, const void* alpha, const void* a, Layout a_layout, const void* b,
                   Layout b_layout, const void* beta, const void* c, Layout c_layout, void* d,
                   Layout d_layout, const Algo* algo, void* workspace, std::size_t workspace_bytes,
                   CUstream_st* stream);
};

// The library cannot be had; the text says what to install.
class MissingLibrary : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The library's functions: of the copy that the process has loaded, else of the file that was named, else of
// the system's. Never unloaded.
const Functions& functions();

// Where the library lies, for the first use.
void set_library_path(const char* path);

// These functions from now on.
void use_functions(const Functions& functions);

// Throws a std::runtime_error that says what has failed and how.
void check(Status status, const char* what);

}  // namespace fastopt::lt
