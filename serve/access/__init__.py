"""Who may use the server, and when: API keys, limits per key, fair admission.

`KeyRing`, `TenantLimits`, `Admission`.
"""
