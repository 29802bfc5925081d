// A linear layer's weight in a run of many steps whose samples are often zero: cut into shares between blocks
// of inputs and between outputs, each with its own copy of what it needs of a batch. A thread that keeps to
// its share reads next to nothing that another has written, and nothing is packed for a product.
#pragma once

#include <functional>
#include <vector>

#include "core/buffer.hpp"
#include "core/dispatch.hpp"

namespace fastopt {

class Strips {
 public:
  // The best cut for so many threads has so many shares; 0 where the layer, or batches of so many rows, are
  // none for strips, or where more than half of the threads would have nothing to do.
  static Index shares_for(const StripKernels& kernel, Index in, Index out, Index rows, int threads);

  // Takes over arrays of shape (out, in), the weight first, for batches of up to so many rows. What throws
  // leaves nothing taken.
  void take(DType dtype, const StripKernels& kernel, Index in, Index out, Index rows, Index shares,
            std::vector<void*> arrays);
  // Puts what has become of them back; nothing where none were taken.
  void give_back();
  bool taken() const { return !arrays_.empty(); }

  Index shares() const { return Index(shares_.size()); }
  bool takes(Index rows) const { return rows <= rows_ && fits(*kernel_, out_, rows); }  // of a batch

  // Copies elements [begin, end) of each of a batch's samples to `to`, in rows `row` bytes apart.
  using Copy = std::function<void(Index begin, Index end, char* to, Index row)>;
  // A share's part of X W'. Its copy of X stays for weight_gradient.
  void forward(Index share, Index rows, const Copy& copy);
  // Rows of the product: the sum of the shares' parts, and the epilogue.
  void join(const GemmArgs& product, Index begin_row, Index end_row) const;

  // Elements of the weight, and those of the other arrays that belong to them.
  struct Piece {
    const void* gradient;
    Index n;
    void* at[6];  // in the order of the arrays
  };
  using Update = std::function<void(const Piece& piece)>;
  // A share's part of the weight's gradient, by that of the layer's result, a piece at a time; with `squares`
  // also the sums of what `update` makes of the weight.
  void weight_gradient(Index share, Index rows, const void* gradient, bool squares, const Update& update);
  // Of an output, once all shares have theirs.
  double squares(Index output) const;

 private:
  struct Share : StripShare {
    Index first_input = 0, first_output = 0, block = 0;
    Index first = 0;  // element of the arrays
    char *panel = nullptr, *piece = nullptr;
  };
  char* array(std::size_t i) const { return memory_ + Index(i) * array_bytes_; }
  static bool fits(const StripKernels& kernel, Index out, Index rows);
  void cut(Index shares);
  void place_rooms(Index arrays);
  template <class F>
  void for_each_strip(const F& f);

  DType dtype_ = DType::f32;
  const StripKernels* kernel_ = nullptr;
  Index item_ = 4, in_ = 0, out_ = 0, rows_ = 0, blocks_ = 0, width_ = 0;  // width: of all strips
  std::vector<void*> arrays_;
  std::vector<Share> shares_;
  Buffer room_;
  char* memory_ = nullptr;
  Index array_bytes_ = 0;
  std::vector<double> squares_;  // of each block the outputs'
};

}  // namespace fastopt
