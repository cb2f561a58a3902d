"""Messages reach the sites through a transport: the contract is here, and Flower's grid."""
