// The GIL, released while a kernel runs.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace fastopt {

// In place of py::gil_scoped_release. Once the interpreter finalizes, a daemon thread that comes back for the
// GIL is ended by CPython before 3.14 with an unwinding of its stack, which may not pass a destructor and
// would free Python objects without the GIL: the process would abort. Here it waits for the end of the
// process, as CPython 3.14 lets it.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace fastopt
