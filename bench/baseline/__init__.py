"""The plain way to serve this model, kept to be measured against: FP32 tensors, whole outputs, whole masks."""
