#pragma once
// Functions that every `tl_math.h` has and none spells otherwise; it includes this after `exp`.

namespace tl {

TL_FN float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
TL_FN double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
template <class T> TL_FN T abs(T a) { return abs_int(a); }

// NaN wins, as in NumPy; on integers `a != a` is false.
template <class T> TL_FN T larger(T a, plain<T> b) { return a >= b || a != a ? a : b; }
template <class T> TL_FN T smaller(T a, plain<T> b) { return a <= b || a != a ? a : b; }

}  // namespace tl
