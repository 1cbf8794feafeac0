from indexes import *
