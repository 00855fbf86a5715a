// The element types of the backend contract: sizes and names are part of the ABI.
#include "backend/dtype.h"

#include "test.h"

TEST("every dtype has the size and the name of the ABI") {
  CHECK_EQ(qf_dtype_size(QF_F32), 4u);
  CHECK_EQ(qf_dtype_size(QF_F16), 2u);
  CHECK_EQ(qf_dtype_size(QF_BF16), 2u);
  CHECK_EQ(qf_dtype_size(QF_I32), 4u);
  CHECK_EQ(qf_dtype_size(QF_U8), 1u);
  CHECK_EQ(std::string(qf_dtype_name(QF_BF16)), "bf16");
  CHECK_EQ(std::string(qf_dtype_name(QF_DTYPE_COUNT)), "?");
}
