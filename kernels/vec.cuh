// 16-byte packs of a row whose base may be aligned to its element only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include <ptx.cuh>

namespace collimate {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

constexpr int kPackBytes = 16;

template <class T>
struct alignas(kPackBytes) Pack {
    static constexpr int kSize = kPackBytes / sizeof(T);
    T elements[kSize];
};

template <class T>
__device__ __forceinline__ int bytes_past_alignment(const T *pointer) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(pointer) % kPackBytes);
}

// The 16 bytes that start `bytes` into the 32 of (low, high); `bytes` is even and the same for the whole warp.
__device__ __forceinline__ uint4 straddle(uint4 low, uint4 high, int bytes) {
    unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (bytes & 8) {
        for (int i = 0; i < 6; i++) words[i] = words[i + 2];
    }
    if (bytes & 4) {
        for (int i = 0; i < 5; i++) words[i] = words[i + 1];
    }
    const unsigned shift = (bytes & 2) * 8;
    return make_uint4(__funnelshift_r(words[0], words[1], shift), __funnelshift_r(words[1], words[2], shift),
                      __funnelshift_r(words[2], words[3], shift), __funnelshift_r(words[3], words[4], shift));
}

template <class T>
__device__ __forceinline__ Pack<T> pack_of(uint4 bits) {
    Pack<T> pack;
    memcpy(&pack, &bits, kPackBytes);
    return pack;
}

// Columns first .. first + kSize of a row of `columns`, all of them inside, at any alignment. `past` is that of the
// row; where it is not 0, the bytes up to the next aligned pack must be inside the row as well.
template <class T>
__device__ __forceinline__ Pack<T> load_inside(const T *row, int first, int past) {
    const char *address = reinterpret_cast<const char *>(row + first) - past;
    const uint4 low = *reinterpret_cast<const uint4 *>(address);
    if (past == 0) return pack_of<T>(low);
    return pack_of<T>(straddle(low, *reinterpret_cast<const uint4 *>(address + kPackBytes), past));
}

// Several packs, `step` columns apart; all loads are in flight before the first is used.
template <int count, class T>
__device__ __forceinline__ void load_inside(Pack<T> (&packs)[count], const T *row, int first, int step, int past) {
    if (past == 0) {
#pragma unroll
        for (int i = 0; i < count; i++) packs[i] = load_inside(row, first + i * step, 0);
        return;
    }
    const char *address = reinterpret_cast<const char *>(row + first) - past;
    uint4 low[count], high[count];
#pragma unroll
    for (int i = 0; i < count; i++) {
        const auto *from = reinterpret_cast<const uint4 *>(address + i * step * static_cast<int>(sizeof(T)));
        low[i] = from[0];
        high[i] = from[1];
    }
#pragma unroll
    for (int i = 0; i < count; i++) packs[i] = pack_of<T>(straddle(low[i], high[i], past));
}

// The same for columns that may lie outside the row: those read as `fill`, and nothing outside is touched.
template <class T>
__device__ __forceinline__ Pack<T> load_edge(const T *row, int columns, int first, int past, T fill) {
    const int before = past / static_cast<int>(sizeof(T)), read = past == 0 ? Pack<T>::kSize : 2 * Pack<T>::kSize;
    if (first - before >= 0 && first - before + read <= columns) return load_inside(row, first, past);
    Pack<T> pack;
    for (int i = 0; i < Pack<T>::kSize; i++) {
        const int column = first + i;
        pack.elements[i] = column >= 0 && column < columns ? row[column] : fill;
    }
    return pack;
}

// Stores columns first .. first + kSize, leaving alone what lies outside the row; row + first is aligned.
template <class T>
__device__ __forceinline__ void store_edge(T *row, int columns, int first, const Pack<T> &pack) {
    if (first >= 0 && first + Pack<T>::kSize <= columns) {
        *reinterpret_cast<Pack<T> *>(row + first) = pack;
        return;
    }
    for (int i = 0; i < Pack<T>::kSize; i++) {
        const int column = first + i;
        if (column >= 0 && column < columns) row[column] = pack.elements[i];
    }
}

// The largest element of several packs; two elements an instruction where they are 16-bit. A NaN loses to a number.
template <int count, class T>
__device__ __forceinline__ float max_of(const Pack<T> (&packs)[count]) {
    unsigned best[4];
    memcpy(best, &packs[0], sizeof best);
    for (int i = 1; i < count; i++) {
        unsigned words[4];
        memcpy(words, &packs[i], sizeof words);
        for (int j = 0; j < 4; j++) best[j] = max_packed<T>(best[j], words[j]);
    }
    const unsigned last = max_packed<T>(max_packed<T>(best[0], best[1]), max_packed<T>(best[2], best[3]));
    T halves[2];
    memcpy(halves, &last, sizeof halves);
    return fmaxf(to_float(halves[0]), to_float(halves[1]));
}
template <int count>
__device__ __forceinline__ float max_of(const Pack<float> (&packs)[count]) {
    float best = packs[0].elements[0];
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < 4; j++) best = fmaxf(best, packs[i].elements[j]);
    }
    return best;
}

}  // namespace collimate
