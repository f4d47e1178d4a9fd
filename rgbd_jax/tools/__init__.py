"""Tools for trained networks: prediction, report, demo page, export, score fusion, plan. Nothing imports them."""
