"""The LDLM door: clients of `ldlm-server` (gRPC, REST, ldlm-lock) on dlock."""
