#include "core/strips.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>

#include "core/chunks.hpp"

namespace fastopt {
namespace {

constexpr Index kLeastStrips = 3;    // of a share: enough sums under way
constexpr Index kPieceInputs = 112;  // at most: with four strips 28 kB
// Arrays are this far apart within a page: a load that follows a store to the same place of another page
// waits.
constexpr Index kPage = 4096, kApart = 640, kLine = 64;

// Memory that nobody uses, for whoever takes arrays next: new large pages take the system half a millisecond,
// and at times ten. Never destroyed, as strips may outlive static destructors.
constexpr Index kMostSpare = Index(1) << 25;
struct Spare {
  std::mutex mutex;
  Buffer room;
};
Spare* const spare = new Spare;

// A thread that would have to wait goes on with its own.
void borrow(Buffer& room) {
  const std::unique_lock<std::mutex> lock(spare->mutex, std::try_to_lock);
  if (lock.owns_lock() && spare->room.bytes() > room.bytes()) spare->room.swap(room);
}
void lend(Buffer& room) {
  const std::unique_lock<std::mutex> lock(spare->mutex, std::try_to_lock);
  if (lock.owns_lock() && room.bytes() > spare->room.bytes() && room.bytes() <= kMostSpare)
    spare->room.swap(room);
}

}  // namespace

bool Strips::fits(const StripKernels& kernel, Index out, Index rows) {
  return kernel.width > 0 && rows > kernel.too_few && rows <= kernel.most_rows && out > kernel.too_few;
}

Index Strips::shares_for(const StripKernels& kernel, Index in, Index out, Index rows, int threads) {
  if (!fits(kernel, out, rows)) return 0;
  const Index blocks = pieces(in, kernel.depth(in)), strips = pieces(out, kernel.width);
  const Index groups =
      std::clamp<Index>(pieces(threads, blocks), 1, std::max<Index>(strips / kLeastStrips, 1));
  return 2 * blocks * groups > threads ? blocks * groups : 0;
}

void Strips::take(DType dtype, const StripKernels& kernel, Index in, Index out, Index rows, Index shares,
                  std::vector<void*> arrays) {
  dtype_ = dtype;
  kernel_ = &kernel;
  item_ = item_bytes(dtype);
  in_ = in;
  out_ = out;
  rows_ = rows;
  cut(shares);
  place_rooms(Index(arrays.size()));
  arrays_ = std::move(arrays);  // now nothing can fail
  for_each_strip([&](const Share& share, std::size_t a, char* strip, Index outputs, Index at) {
    kernel_->fill(share, static_cast<const char*>(arrays_[a]) + at * item_, in_, outputs, strip);
  });
}

void Strips::give_back() {
  if (!taken()) return;
  for_each_strip([&](const Share& share, std::size_t a, char* strip, Index outputs, Index at) {
    kernel_->restore(share, strip, in_, outputs, static_cast<char*>(arrays_[a]) + at * item_);
  });
  arrays_.clear();
  memory_ = nullptr;
  lend(room_);
}

// Shares in the order of their blocks.
void Strips::cut(Index shares) {
  const Index depth = kernel_->depth(in_), strips = pieces(out_, kernel_->width);
  blocks_ = pieces(in_, depth);
  width_ = strips * kernel_->width;
  const Index groups = shares / blocks_;
  shares_.clear();
  Index at = 0;
  for (Index block = 0; block < blocks_; ++block)
    for (Index g = 0; g < groups; ++g) {
      const Index first = strips * g / groups, end = strips * (g + 1) / groups;
      Share share{};
      share.block = block;
      share.first_input = block * depth;
      share.first_output = first * kernel_->width;
      share.strips = end - first;
      share.outputs = std::min(end * kernel_->width, out_) - share.first_output;
      share.rows = rows_;
      kernel_->place(share, std::min(depth, in_ - share.first_input));
      share.first = at;
      at += share.strips * share.inputs * kernel_->width;
      shares_.push_back(share);
    }
  array_bytes_ = round_up(at * item_, kPage) + kApart;
}

void Strips::place_rooms(Index arrays) {
  squares_.assign(std::size_t(blocks_ * width_), 0.0);
  const Index width = kernel_->width * item_, even = round_up(rows_, 2);
  const auto place_all = [&](char* const base) {
    Index bytes = arrays * array_bytes_;
    char* sums = nullptr;
    const auto take = [&](Index size) {
      char* const place = base ? base + bytes : nullptr;
      bytes += round_up(size, kLine);
      return place;
    };
    for (Share& share : shares_) {
      bytes = round_up(bytes, kPage);  // the one before is another thread's
      if (share.first_output == 0) sums = take(even * width_ * item_);
      share.sums = sums ? sums + share.first_output * item_ : nullptr;
      share.sums_row = width_;
      share.x = take(rows_ * share.x_row * item_);
      share.lists = take(kernel_->list_bytes(share));
      share.panel = take(rows_ * kernel_->together * width);
      share.piece = take(kernel_->together * kPieceInputs * width);
      share.weight = element_at(static_cast<const void*>(base), share.first, dtype_);
    }
    return bytes;
  };
  const Index bytes = place_all(nullptr);
  if (bytes > room_.bytes()) borrow(room_);
  memory_ = room_.reserve(bytes);
  place_all(memory_);
  for (Share& share : shares_)
    for (Index r = 0; r < rows_; ++r)
      std::memset(static_cast<char*>(share.x) + (r * share.x_row + share.depth) * item_, 0,
                  std::size_t((share.x_row - share.depth) * item_));
}

// f(share, array, its strip, how many of the strip's outputs exist, element of the array they begin at).
template <class F>
void Strips::for_each_strip(const F& f) {
  const Index arrays = Index(arrays_.size());
  parallel_for(shares() * arrays, in_ * out_ * arrays >= kSerialElements, [&](Index i) {
    const Share& share = shares_[std::size_t(i / arrays)];
    for (Index s = 0; s < share.strips; ++s) {
      const Index output = share.first_output + s * kernel_->width;
      char* const strip =
          array(std::size_t(i % arrays)) + (share.first + s * share.inputs * kernel_->width) * item_;
      f(share, std::size_t(i % arrays), strip, std::min(kernel_->width, out_ - output),
        output * in_ + share.first_input);
    }
  });
}

void Strips::forward(Index i, Index rows, const Copy& copy) {
  Share& share = shares_[std::size_t(i)];
  share.rows = rows;
  copy(share.first_input, share.first_input + share.depth, static_cast<char*>(share.x), share.x_row * item_);
  kernel_->forward(share);
}

void Strips::join(const GemmArgs& product, Index begin_row, Index end_row) const {
  char* const c = static_cast<char*>(product.c);
  for (const Share& share : shares_)
    kernel_->join(share, share.block > 0, c + share.first_output * item_, product.c_row, begin_row, end_row);
  kernels().gemm[int(dtype_)].finish(product, begin_row, end_row);
}

void Strips::weight_gradient(Index i, Index rows, const void* gradient, bool squares, const Update& update) {
  Share& share = shares_[std::size_t(i)];
  const StripKernels& strip = *kernel_;
  share.rows = rows;
  share.gradient = static_cast<const char*>(gradient) + share.first_output * item_;
  share.gradient_row = out_;
  strip.list_columns(share);
  const Index passes = pieces(share.strips, strip.together), cuts = pieces(share.inputs, kPieceInputs),
              length = round_up(pieces(share.inputs, cuts), 4);
  for (Index pass = 0; pass < passes; ++pass) {
    const Index first = share.strips * pass / passes, end = share.strips * (pass + 1) / passes;
    strip.pack(share, first, end - first, share.panel);
    for (Index begin = 0; begin < share.inputs; begin += length) {
      const Index stop = std::min(begin + length, share.inputs), n = (stop - begin) * strip.width;
      strip.weight_gradient(share, share.panel, end - first, begin, stop, share.piece);
      for (Index s = first; s < end; ++s) {
        const Index at = (share.first + (s * share.inputs + begin) * strip.width) * item_;
        Piece piece{share.piece + (s - first) * n * item_, n, {}};
        for (std::size_t a = 0; a < arrays_.size(); ++a) piece.at[a] = array(a) + at;
        update(piece);
      }
    }
  }
  share.finite = false;
  if (!squares) return;
  double* const sums = squares_.data() + share.block * width_ + share.first_output;
  for (Index s = 0; s < share.strips; ++s)
    strip.squares(share, memory_ + (share.first + s * share.inputs * strip.width) * item_,
                  sums + s * strip.width);
  share.finite = std::isfinite(std::accumulate(sums, sums + share.outputs, 0.0));
}

double Strips::squares(Index output) const {
  double sum = 0.0;
  for (Index block = 0; block < blocks_; ++block) sum += squares_[std::size_t(block * width_ + output)];
  return sum;
}

}  // namespace fastopt
