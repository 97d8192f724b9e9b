//! The wire: gRPC for agents and enforcement points, HTTP and JSON for operators, and the conversions.
