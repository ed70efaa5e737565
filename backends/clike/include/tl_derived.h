#pragma once
// Functions that every `tl_math.h` has and none spells otherwise; it includes this after `exp`.

namespace tl {

// By the power that does not overflow: sigmoid(-95) is no 0.
template <class T> TL_FN T sigmoid(T x) {
  const T power = exp(x < 0 ? x : -x);
  return (x < 0 ? power : T(1)) / (1 + power);
}
template <class T> TL_FN T abs(T a) { return abs_int(a); }

// NaN wins, as in NumPy; on integers `a != a` is false.
template <class T> TL_FN T larger(T a, plain<T> b) { return a >= b || a != a ? a : b; }
template <class T> TL_FN T smaller(T a, plain<T> b) { return a <= b || a != a ? a : b; }

}  // namespace tl
