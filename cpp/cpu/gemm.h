// C (m x n) = activation(A (m x k) B (k x n) + bias): the matrix product under linear, conv and recurrent.
#pragma once

#include "lec7/activation.h"
#include "tile.h"

namespace lec7::cpu::LEC7_ISA {

// A matrix in memory: rows `ld` apart. `transposed`: the operand is this matrix's transpose.
template <class T>
struct Operand {
  const T* data;
  Index ld;
  bool transposed = false;
};

// Overwrites c. bias (n) may be null. Runs on all threads; the order of each sum depends on the sizes only.
template <class T>
void gemm(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias = nullptr,
          Activation activation = Activation::none);

// dweight (columns x n) = x^T dz and dbias (n) = the column sum of dz; not wanted where null. x is rows x columns and
// dense. dz (rows x n) is read in place, by panels: its rows stand ld >= PackedB<T>::padded_columns(n) apart, best not
// at a multiple of 1 KiB, and what is in the padding does not matter.
template <class T>
void gemm_gradient(Index rows, Index columns, Index n, const T* x, const T* dz, Index ld, T* dweight, T* dbias);

// ---- The parts, for kernels that make their own A (conv) or keep B packed (recurrent) ----

inline constexpr Index kKBlock = 512;  // rows of a packed block of B: a panel of it (128 KiB) streams from L2

// B packed: blocks of up to kKBlock rows, in each block panels of kPanel columns, in each panel the rows one after
// the other. The last panel is padded with zeros to whole vectors.
template <class T>
struct PackedB {
  const T* data;
  Index k;
  Index n;

  static Index padded_columns(Index n) { return (n + W<T> - 1) / W<T> * W<T>; }
  static Index size(Index k, Index n) { return k * padded_columns(n); }
  static Index panels(Index n) { return (n + kPanel<T> - 1) / kPanel<T>; }
  // Equal blocks, so that the last is not a sliver.
  static Index block_rows(Index k) {
    const Index blocks = (k + kKBlock - 1) / kKBlock;
    return (k + blocks - 1) / blocks;
  }
};

// What the caller reads next, from far away: whole lines.
template <class T>
struct Ahead {
  const T* data = nullptr;
  Index numbers = 0;
};

// Packs panel `panel` of the block of B that starts at row k0 (of `rows` rows) to `packed`.
template <class T>
void pack_panel(Operand<T> b, Index n, Index k0, Index rows, Index panel, T* packed);

// Packs all of B, on the caller's thread or on the team of `parallel_for`.
template <class T>
void pack_b(Operand<T> b, Index k, Index n, T* packed);

// C rows = A rows * B for the panels [first, last) of a packed B, on this thread. A is row-major, or transposed with
// its k rows `lda` apart. Starts from bias (may be null) or, where `accumulate`, from C. What is `ahead` comes to L2
// meanwhile.
template <class T>
void multiply_packed(Index m, const T* a, Index lda, Order order, PackedB<T> b, Index first, Index last, T* c,
                     Index ldc, const T* bias, bool accumulate, Ahead<T> ahead = {});

}  // namespace lec7::cpu::LEC7_ISA
