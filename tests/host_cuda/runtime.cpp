// Devices, memory, streams and graphs as host code asks for them, and what it is told where they are refused.
#include "cuda/runtime.hpp"

#include <cstring>
#include <string>

#include "cuda/cublaslt.hpp"
#include "cuda/queue.hpp"
#include "host_runtime.hpp"
#include "native.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

template <class Error, class F>
void check_throws(const std::string& message, const F& f) {
  std::string text = "nothing";
  try {
    f();
  } catch (const Error& error) {
    text = error.what();
  }
  if (text != message && failures++ < 50)
    fprintf(stderr, "\"%s\", expected \"%s\"\n", text.c_str(), message.c_str());
}

void check_devices() {
  CHECK(device_count() == 2 && driver_version() == 13000);
  const auto refuses = [](host_cuda::Machine machine, const std::string& message) {
    const host_cuda::Machine before = host_cuda::machine;
    host_cuda::machine = machine;
    check_throws<DeviceError>(message, [] { device_count(); });
    host_cuda::machine = before;
  };
  refuses({0, 0}, "there is no NVIDIA driver: install the one of your GPU, version 580 or newer");
  refuses({1, 12080},
          "the NVIDIA driver is for CUDA 12.8, this build of fastopt needs CUDA 13.0: install driver 580 or "
          "newer");
  refuses({0, 13010}, "no NVIDIA GPU can be used: no CUDA-capable device is detected");
  CHECK(cudaGetLastError() == cudaSuccess);
}

void check_guard() {
  int device = -1;
  {
    const DeviceGuard guard(1);
    CHECK(cudaGetDevice(&device) == cudaSuccess && device == 1);
    const DeviceGuard same(1);
  }
  CHECK(cudaGetDevice(&device) == cudaSuccess && device == 0);
}

void check_memory() {
  static char of[3];
  host_cuda::give_to_device(of, 1, 1);
  host_cuda::give_to_device(of + 1, 1, -1);
  CHECK(pointer_device(of) == 1 && pointer_device(of + 1) == -1 && pointer_device(of + 2) == 0);
  host_cuda::most_memory = 4096;
  check_throws<DeviceError>("there are no 4097 bytes of device memory: out of memory",
                            [] { device_memory(4097); });
  host_cuda::most_memory = std::size_t(-1);
  CHECK(cudaGetLastError() == cudaSuccess);
}

// Scratch is a stream's and a device's own, has zeros in front, grows, and lives on where it has been
// outgrown.
void check_scratch() {
  const OwnStream stream, other;
  const auto at = [](CudaStream of, Index bytes) {
    const Scratch scratch(of, bytes);
    char* const memory = static_cast<char*>(scratch.get());
    for (int i = 0; i < 64; ++i) CHECK(memory[i] == 0);
    std::memset(memory + 64, 1, std::size_t(bytes) - 64);
    return memory;
  };
  char* const small = at(stream.get(), 100);
  CHECK(at(stream.get(), 200) == small);
  CHECK(at(other.get(), 100) != small);
  {
    const DeviceGuard guard(1);
    CHECK(at(stream.get(), 100) != small);
  }
  char* const large = at(stream.get(), 100000);
  CHECK(large != small && at(stream.get(), 100) == large);
  small[99] = 2;
}

// What fails while it is being captured leaves a stream that can be used.
void check_graph() {
  const OwnStream stream;
  double from = 1.5, to = 0;
  check_throws<std::runtime_error>("no", [&] {
    Graph(stream.get(), [&] {
      CHECK(is_capturing(stream.get()));
      throw std::runtime_error("no");
    });
  });
  CHECK(!is_capturing(stream.get()));
  check_throws<std::runtime_error>("CUDA: operation failed due to a previous error during capture", [&] {
    Graph(stream.get(), [&] {
      cudaStreamSynchronize(stream.get());
      cudaGetLastError();
    });
  });
  CHECK(!is_capturing(stream.get()));
  const Graph graph(stream.get(), [&] { copy_in_device(&to, &from, sizeof to, stream.get()); });
  CHECK(to == 0);
  graph.launch(stream.get());
  synchronize(stream.get());
  CHECK(to == 1.5);
  CHECK(can_capture(stream.get()) && !can_capture(nullptr) && !can_capture(cudaStreamLegacy));
}

void check_statuses() {
  using lt::Status;
  lt::check(Status::success, "a product");
  std::string texts;
  for (const Status status : {Status::not_initialized, Status::alloc_failed, Status::invalid_value,
                              Status::arch_mismatch, Status::mapping_error, Status::execution_failed,
                              Status::internal_error, Status::not_supported, Status::license_error}) {
    std::string text;
    try {
      lt::check(status, "a product");
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    CHECK(text.starts_with("cuBLASLt, a product: "));
    CHECK(text.ends_with(" (status " + std::to_string(int(status)) + ")"));
    CHECK(texts.find(text) == std::string::npos);
    texts += text;
  }
}

}  // namespace

void test_cuda_runtime() {
  check_devices();
  check_guard();
  check_memory();
  check_scratch();
  check_graph();
  check_statuses();
}

}  // namespace fastopt::test
