// Sixteen-bit floats, for test_types.py.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> static void round_trip(const float* in, float* out, std::uint16_t* bits, int count) {
  for (int i = 0; i < count; ++i) {
    const T value = in[i];
    out[i] = value, bits[i] = value.bits;
  }
}
template <class T> static void combine(const float* a, const float* b, float* out, int count) {
  for (int i = 0; i < count; ++i) {
    T value = T(a[i]) * T(b[i]) - T(a[i]) / T(b[i]);
    value += -T(b[i]);
    out[i] = value;
  }
}

extern "C" {
void half_round_trip(const float* in, float* out, std::uint16_t* bits, int count) {
  round_trip<__half>(in, out, bits, count);
}
void bfloat16_round_trip(const float* in, float* out, std::uint16_t* bits, int count) {
  round_trip<__nv_bfloat16>(in, out, bits, count);
}
void half_combine(const float* a, const float* b, float* out, int count) {
  combine<__half>(a, b, out, count);
}
void bfloat16_combine(const float* a, const float* b, float* out, int count) {
  combine<__nv_bfloat16>(a, b, out, count);
}
}
