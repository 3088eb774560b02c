"""Many cells: the request, the plan, costs, leases, and the executors."""
