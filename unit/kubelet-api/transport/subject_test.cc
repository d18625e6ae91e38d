// Whom a client certificate is for.
#include <openssl/x509.h>

#include <memory>
#include <utility>
#include <vector>

#include "kubelet-api/transport/connection.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using ::testing::ElementsAre;

struct Entry {
  const char* field;
  std::string value;
  int type = MBSTRING_UTF8;
};

std::optional<kubelet_api::CertificateSubject> SubjectWith(const std::vector<Entry>& entries) {
  const std::unique_ptr<X509, decltype(&::X509_free)> certificate(::X509_new(), &::X509_free);
  X509_NAME* const name = ::X509_get_subject_name(certificate.get());
  for (const Entry& entry : entries) {
    EXPECT_EQ(
        ::X509_NAME_add_entry_by_txt(name, entry.field, entry.type,
                                     reinterpret_cast<const unsigned char*>(entry.value.data()),
                                     static_cast<int>(entry.value.size()), -1, 0),
        1);
  }
  return kubelet_api::SubjectOf(certificate.get());
}

TEST(SubjectTest, TheLastOfSeveralCommonNamesCounts) {
  const auto subject =
      SubjectWith({{"CN", "system:admin"}, {"O", "one"}, {"CN", "eve"}, {"O", "two"}});
  ASSERT_TRUE(subject);
  EXPECT_EQ(subject->user, "eve");
  EXPECT_THAT(subject->groups, ElementsAre("one", "two"));
}

TEST(SubjectTest, NobodyIsMeantWithoutACommonName) {
  EXPECT_FALSE(SubjectWith({{"O", "system:masters"}}));
}

TEST(SubjectTest, ANameThatIsNoTextIsNobodys) {
  EXPECT_FALSE(SubjectWith({{"CN", "ann"}, {"CN", "\xff\xfe", V_ASN1_UTF8STRING}}));
  EXPECT_FALSE(SubjectWith({{"CN", "ann"}, {"O", "\xff\xfe", V_ASN1_UTF8STRING}}));
}

}  // namespace
}  // namespace stasis::testing
