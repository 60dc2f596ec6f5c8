from strategies.continual.avalanche.adapter import import_avalanche

import_avalanche()  # under pytest's `filterwarnings = error`: no warning may reach the user
