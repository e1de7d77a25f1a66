// The register tile that every matrix product is made of: C (MR x NV vectors) += A (MR x K) B (K x NV vectors).
//
// A tile of 6 x 4 vectors is 24 accumulators, 4 loaded vectors of B and one broadcast: 29 of AVX-512's 32
// registers; each step of k is 24 FMAs (12 cycles on two ports) for 10 loads. With 16 registers it is 6 x 2.
#pragma once

#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

inline constexpr int kTileRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif

// Columns of a packed panel of B.
template <class T>
inline constexpr Index kPanel = kTileVectors * W<T>;

// How a tile reads A: rows at stride `ld` (row-major), or columns at stride `ld` (A transposed in memory).
enum class Order { row_major, transposed };

template <class T, int MR, int NV>
struct Tile {
  Vec<T> c[MR][NV];

  LEC7_INLINE void zero() {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) LEC7_UNROLL
    for (int j = 0; j < NV; ++j) c[i][j] = Vec<T>{};
  }

  // ld = 0 puts one row, a bias, into all of them.
  LEC7_INLINE void load_from(const T* p, Index ld) {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) c[i][j] = load(p + i * ld + j * W<T>);
    }
  }
  LEC7_INLINE void load_columns(const T* p, Index ld, Index columns) {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV - 1; ++j) c[i][j] = load(p + i * ld + j * W<T>);
      c[i][NV - 1] = load_first(p + i * ld + (NV - 1) * W<T>, columns - (NV - 1) * W<T>);
    }
  }

  // C += the rows at p; ld = 0 adds one row, a bias, to all of them.
  LEC7_INLINE void add_columns(const T* p, Index ld, Index columns) {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV - 1; ++j) c[i][j] += load(p + i * ld + j * W<T>);
      c[i][NV - 1] += load_first(p + i * ld + (NV - 1) * W<T>, columns - (NV - 1) * W<T>);
    }
  }

  static LEC7_INLINE void prefetch(const T* p, Index ld) {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV; j += 2) __builtin_prefetch(p + i * ld + j * W<T>, 1);
    }
  }

  LEC7_INLINE void store_to(T* p, Index ld) const {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) store(p + i * ld + j * W<T>, c[i][j]);
    }
  }
  // Only `columns` of the NV * W columns exist; the last vector is partial.
  LEC7_INLINE void store_columns(T* p, Index ld, Index columns) const {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      LEC7_UNROLL
      for (int j = 0; j < NV - 1; ++j) store(p + i * ld + j * W<T>, c[i][j]);
      store_first(p + i * ld + (NV - 1) * W<T>, c[i][NV - 1], columns - (NV - 1) * W<T>);
    }
  }

  LEC7_INLINE void multiply_step(const Vec<T> (&b)[NV], const T* a, Index row_stride) {
    LEC7_UNROLL
    for (int i = 0; i < MR; ++i) {
      const T s = a[i * row_stride];
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) c[i][j] += s * b[j];
    }
  }

  // Rows of B stand `ldb` apart (NV * W where B is packed). Four steps at a time: with five rows and fewer the loop's
  // own instructions would take ports from the FMAs (5 x 4: 94 % of peak rolled, all of it unrolled).
  template <Order order>
  LEC7_INLINE void multiply(Index k, const T* __restrict a, Index lda, const T* __restrict b, Index ldb) {
    _Pragma("GCC unroll 4") for (Index step = 0; step < k; ++step) {
      Vec<T> row[NV];
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) {
        row[j] = load(b + j * W<T>);
        pin(row[j]);
      }
      if constexpr (order == Order::row_major) multiply_step(row, a + step, lda);
      else multiply_step(row, a + step * lda, 1);
      b += ldb;
    }
  }

  // As multiply with each row of A at a place of its own.
  LEC7_INLINE void multiply_rows(Index k, const T* const (&a)[MR], const T* __restrict b) {
    _Pragma("GCC unroll 4") for (Index step = 0; step < k; ++step) {
      Vec<T> row[NV];
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) {
        row[j] = load(b + j * W<T>);
        pin(row[j]);
      }
      LEC7_UNROLL
      for (int i = 0; i < MR; ++i) {
        LEC7_UNROLL
        for (int j = 0; j < NV; ++j) c[i][j] += a[i][step] * row[j];
      }
      b += NV * W<T>;
    }
  }

  // As multiply on an unpacked B of which only `columns` exist: reads nothing past them. Its rows may be pages apart,
  // where no hardware prefetcher follows.
  template <Order order>
  LEC7_INLINE void multiply_unpacked(Index k, const T* __restrict a, Index lda, const T* __restrict b, Index ldb,
                                     Index columns) {
    constexpr Index kAhead = 12;
    const Index last = columns - (NV - 1) * W<T>;
    _Pragma("GCC unroll 1") for (Index step = 0; step < k; ++step) {
      Vec<T> row[NV];
      LEC7_UNROLL
      for (int j = 0; j < NV; ++j) __builtin_prefetch(b + kAhead * ldb + j * W<T>, 0, 3);
      LEC7_UNROLL
      for (int j = 0; j < NV - 1; ++j) row[j] = load(b + j * W<T>);
      row[NV - 1] = load_first(b + (NV - 1) * W<T>, last);
      if constexpr (order == Order::row_major) multiply_step(row, a + step, lda);
      else multiply_step(row, a + step * lda, 1);
      b += ldb;
    }
  }

 private:
  // With few rows GCC 12 folds the load of B into every FMA (94 instead of 117 GFLOP/s): keep it in a register.
  static LEC7_INLINE void pin(Vec<T>& v) {
#if defined(__AVX2__)
    if constexpr (MR > 1 && MR <= 4) asm("" : "+v"(v));
#else
    (void)v;
#endif
  }
};

// Calls body<MR>(row) on blocks of rows that cover [0, rows): sixes and fives, since a small rest would run at a
// fraction of the speed.
template <class Body>
LEC7_INLINE void for_row_tiles(Index rows, Body&& body) {
  Index fives = 0;
  while (fives < kTileRows && 5 * fives <= rows && (rows - 5 * fives) % kTileRows != 0) ++fives;
  const bool covered = fives < kTileRows && 5 * fives <= rows;
  const Index sixes_end = covered ? rows - 5 * fives : rows / kTileRows * kTileRows;
  Index row = 0;
  for (; row < sixes_end; row += 6) body.template operator()<6>(row);
  for (; row + 5 <= rows; row += 5) body.template operator()<5>(row);
  switch (rows - row) {
    case 4: body.template operator()<4>(row); break;
    case 3: body.template operator()<3>(row); break;
    case 2: body.template operator()<2>(row); break;
    case 1: body.template operator()<1>(row); break;
    default: break;
  }
}

// Calls body<NV>() with the number of vectors that `columns` (1 .. kPanel) need.
template <class T, class Body>
LEC7_INLINE void with_vectors(Index columns, Body&& body) {
  const Index vectors = (columns + W<T> - 1) / W<T>;
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return body.template operator()<4>();
    if (vectors == 3) return body.template operator()<3>();
  }
  if (vectors == 2) return body.template operator()<2>();
  body.template operator()<1>();
}

}  // namespace lec7::cpu::LEC7_ISA
