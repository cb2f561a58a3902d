"""How messages reach the sites: the contract, and Flower's grid."""
