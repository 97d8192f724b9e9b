//! The data plane: terminate and originate mutual TLS, decide, route, fail over, report.
