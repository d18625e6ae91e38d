#pragma once

#include <locale.h>

namespace stasis::archive {

/// Text of this thread is UTF-8 while this lives, whatever the program's locale; glibc has C.UTF-8
/// built in since 2.35. Other threads are not touched (uselocale(3)).
class Utf8Locale {
 public:
  Utf8Locale() : locale_(::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr)) {
    if (locale_ != nullptr) before_ = ::uselocale(locale_);
  }
  Utf8Locale(const Utf8Locale&) = delete;
  Utf8Locale& operator=(const Utf8Locale&) = delete;
  ~Utf8Locale() {
    if (locale_ == nullptr) return;
    ::uselocale(before_);
    ::freelocale(locale_);
  }

 private:
  const locale_t locale_;
  locale_t before_ = nullptr;
};

}  // namespace stasis::archive
